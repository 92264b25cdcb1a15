from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetkit import forget
from forgetkit.engine import execution
from forgetkit.engine.place import Place
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import weights

OPTIONS = {"lau": {}, "finetune": {"lr": 0.1, "epochs": 40}}
METHODS = ["lau", pytest.param("finetune", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("method", METHODS)
def test_bf16_mixed_precision(kind: str, method: str) -> None:
    some = toy(kind)
    kept = some.accuracy(some.test, [0, 1, 2])
    request = forget(some.model).classes([3]).using(method, **OPTIONS[method])
    result = request.on("cpu", mixed_precision="bf16").run(some.loader(), guard=None)
    assert result.after["forget"].accuracy <= 0.5
    assert some.accuracy(some.test, [0, 1, 2]) >= kept - 0.1
    assert all(p.dtype == torch.float32 for p in some.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights(kind: str, method: str, dtype: torch.dtype) -> None:
    some = toy(kind)
    some.model.to(dtype)
    addresses = [p.data_ptr() for p in some.model.parameters()]
    kept = some.accuracy(some.test, [0, 1, 2])
    request = forget(some.model).classes([3]).using(method, **OPTIONS[method]).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert result.after["forget"].accuracy <= 0.5
    if method == "lau":  # the stop rule looks at the rounded head
        assert some.accuracy(some.train, [3]) == 0.0
    assert some.accuracy(some.test, [0, 1, 2]) >= kept - 0.1
    assert all(p.dtype == dtype for p in some.model.parameters())
    assert addresses == [p.data_ptr() for p in some.model.parameters()]


def test_another_precision_in_the_same_process() -> None:
    for precision in ("no", "bf16", "no"):
        some = toy("cnn")
        request = forget(some.model).classes([3]).using("lau")
        result = request.on("cpu", mixed_precision=precision).run(some.forget_loader(), guard=None)
        assert result.after["forget"].accuracy == 0.0


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate: int) -> None:
    outcomes = []
    for parts in (1, accumulate):
        some = toy("vit")
        request = forget(some.model).classes([3]).using("neggrad", epochs=1)
        request.on("cpu", accumulate=parts).run(some.forget_loader(), guard=None)
        outcomes.append(weights(some.model))
    for name, value in outcomes[0].items():
        assert torch.allclose(value, outcomes[1][name], atol=1e-5), name


class Beside(Place):
    """The place of one of two processes; the gradient of the other one overflows."""

    def mean_gradients(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad += torch.inf


@pytest.mark.parametrize(
    ("method", "settings"),
    # two of them clip gradients; without a mask, whose zeros would make NaN of infinity
    [("finetune", {}), ("neggrad", {}), ("sfron", {"ratio": 0.0})],
)
def test_an_overflow_in_another_process_skips_the_step_here_too(
    monkeypatch: pytest.MonkeyPatch, method: str, settings: dict[str, float]
) -> None:
    def chosen(*_: Any) -> Place:  # noqa: ANN401
        return Beside(torch.device("cpu"), "fp16")

    monkeypatch.setattr(execution, "choose_place", chosen)
    some = toy("cnn")
    before = weights(some.model)
    configured = {"epochs": 1, "bn": "frozen", "batch_size": 32, **settings}
    request = forget(some.model).classes([3]).using(method, **configured)
    result = request.run(some.loader(), guard=None)
    assert all(torch.equal(value, before[name]) for name, value in weights(some.model).items())
    steps = int(result.history[-1]["steps"])
    told = f"{method}: {steps} of {steps} steps moved nothing"
    assert any(note.startswith(told) for note in result.notes)
    assert "clipped" not in result.stopped_because
    assert result.history[-1].get("clipped_ascents", 0.0) == 0.0


def test_a_run_whose_steps_all_move_something_says_nothing_of_it() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("neggrad", epochs=2)
    result = request.on("cpu", mixed_precision="bf16").run(some.loader(), guard=None)
    assert not any("moved nothing" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_only_weights_of_half_precision_mean_mixed_precision(kind: str) -> None:
    some = toy("cnn")
    scale = torch.ones(1, dtype=torch.bfloat16)
    last = some.model.get_submodule("dropout")
    if kind == "buffer":
        last.register_buffer("scale", scale)
    else:
        last.register_parameter("scale", torch.nn.Parameter(scale))
    seen = set()
    some.model.get_submodule("fc").register_forward_hook(
        lambda _, __, logits: seen.add(logits.dtype)
    )
    request = forget(some.model).classes([3]).using("finetune", epochs=1).on("cpu")
    request.run(some.loader(), guard=None)
    assert (torch.bfloat16 in seen) == (kind == "parameter")
