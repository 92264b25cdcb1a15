"""A training step reads one number back from the device: whether its loss is finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.attacks import escape
from forgetkit.data.sets import StoredSet
from forgetkit.engine.finite import TOGETHER
from forgetkit.engine.measuring import measure
from forgetkit.engine.place import Place
from forgetkit.engine.run import Run
from forgetkit.engine.training import Loop
from forgetkit.errors import UnlearningFailed
from forgetkit.method import find
from forgetkit.testing import toy
from forgetkit.testing.contract import quick, request
from forgetkit.types import Batch

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Waits(TorchDispatchMode):
    """Counts what an accelerator would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        masks = args[1] if func is torch.ops.aten.index.Tensor else ()
        masked = any(one is not None and one.dtype == torch.bool for one in masks)
        self.count += int(func in READS or masked)
        return func(*args, **(kwargs or {}))


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return what torch returns, which looks at the labels on the CPU alone."""
    empty = torch.zeros(len(labels), num_classes, dtype=torch.int64)
    return empty.scatter_(1, labels[:, None], 1)


def counted(call: Callable[..., Any], waits: Waits) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with waits:
            return call(*args, **kwargs)

    return inside


@pytest.mark.parametrize(
    "slug", ["finetune", "neggrad", "scrub", "sfron", "adv", "spotter", "lau", "bad_teaching"]
)
def test_a_step_waits_once(monkeypatch: pytest.MonkeyPatch, slug: str) -> None:
    monkeypatch.setattr(functional, "one_hot", one_hot)
    waits = Waits()  # type: ignore[no-untyped-call]  # torch gives it none
    for name in ("_backward", "_apply"):
        monkeypatch.setattr(Loop, name, counted(getattr(Loop, name), waits))
    method, some = find(slug), toy("cnn")
    short = quick(method, "cnn", epochs=1, optimizer="sgd")
    result = request(short, some.model).run(some.loader(), guard=None)
    assert waits.count == result.history[-1]["steps"]


def test_numbers_for_the_history_may_be_tensors() -> None:
    run = Run.__new__(Run)
    run.counts, run.tallies = {}, {}
    number = torch.tensor(2.0, requires_grad=True)
    run.count("last", number)
    for _ in range(2):
        run.tally("sum", number)
    with torch.no_grad():
        number.mul_(10.0)
    assert (run.counts, run.tallies) == ({"last": 2.0}, {"sum": 4.0})


def test_an_escape_reads_the_own_logit_of_each_sample() -> None:
    logits: Tensor = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    found = escape(logits, torch.tensor([1, 0]))
    others = [logits[0, [0, 2]].logsumexp(0) - 2.0, logits[1, 1:].logsumexp(0) - 3.0]
    assert torch.allclose(found, torch.stack(others))


class Broken(torch.nn.Module):
    """Its logits for the images of the third batch are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, 2)."""
        return self.fc(torch.where(images > 40, torch.nan, images))  # type: ignore[no-any-return]


IMAGES, LABELS = torch.arange(48.0)[:, None].expand(-1, 2), torch.arange(48) % 2


def test_measuring_waits_once_a_set_and_names_the_batch() -> None:
    place, model = Place(torch.device("cpu")), Broken()
    samples = StoredSet(IMAGES, LABELS, batch_size=4)

    def logits_of(batch: Batch) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        return model(batch.inputs)  # type: ignore[no-any-return]

    with pytest.raises(UnlearningFailed, match="in batch 10;"):
        measure(samples, logits_of, 2, place)
    counts = []
    for size in (4, 20):
        some, waits = StoredSet(IMAGES[:40], LABELS[:40], batch_size=size), Waits()  # type: ignore[no-untyped-call]
        with waits:
            assert measure(some, logits_of, 2, place).samples == 40
        counts.append(waits.count)
    assert counts[0] == counts[1]  # whatever the number of batches


def test_a_broken_model_is_not_asked_about_every_batch_first() -> None:
    place, asked = Place(torch.device("cpu")), []
    samples = StoredSet(torch.zeros(400, 2), torch.zeros(400, dtype=torch.int64), batch_size=1)

    def logits_of(batch: Batch) -> Tensor:
        asked.append(len(batch))
        return torch.full((len(batch), 2), torch.nan)

    with pytest.raises(UnlearningFailed, match="in batch 0;"):
        measure(samples, logits_of, 2, place)
    assert len(asked) == TOGETHER < len(samples)


def test_features_that_are_not_finite_are_found_with_their_batch() -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16)
    asked = forget(Broken()).classes([1]).using("lau").head("fc").on("cpu")
    with pytest.raises(UnlearningFailed, match="in batch 1;"):
        asked.run(loader, guard=None)
