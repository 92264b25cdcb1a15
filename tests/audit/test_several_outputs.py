"""Models that return several tensors of the class width, audited at the one that was named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from forgetkit import audit, forget
from forgetkit.errors import CannotSplitModel
from forgetkit.testing import toy
from forgetkit.testing.trace import photograph

CHECKS = ["accuracy", "relearn_time", "linear_probe", "over_unlearning"]


class Two(nn.Module):
    """Returns logits beside others that know nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"noise": torch.zeros_like(logits), "scores": logits}


def _second(found: dict[str, Tensor]) -> Tensor:
    return found["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["scores", _second], ids=["key", "function"])
def test_the_named_output_is_audited(output: str | Callable[..., Tensor]) -> None:
    some = toy("cnn")
    model = Two(some.model)
    before = photograph(model)
    loader = DataLoader(some.train, batch_size=32)
    found = audit(
        model, forget=loader, test=loader, classes=[3], output=output, metrics=CHECKS, device="cpu"
    )
    plain = audit(some.model, forget=loader, test=loader, classes=[3], metrics=CHECKS, device="cpu")
    values = {one.slug: (one.value, one.verdict) for one in found.findings}
    assert values == {one.slug: (one.value, one.verdict) for one in plain.findings}
    assert values["accuracy"][0] is not None
    assert values["accuracy"][0] > 0.9
    assert before == photograph(model)


def test_without_a_name_several_outputs_are_refused() -> None:
    some = toy("cnn")
    loader = DataLoader(some.train, batch_size=32)
    with pytest.raises(CannotSplitModel, match="output"):
        audit(Two(some.model), forget=loader, classes=[3], metrics=["accuracy"], device="cpu")


@pytest.mark.slow
def test_a_result_is_audited_at_the_output_of_its_run() -> None:
    some = toy("cnn")
    model = Two(some.model)
    loader = DataLoader(some.train, batch_size=32)
    request = forget(model).classes([3]).using("lau").head("model.fc", output="scores").on("cpu")
    result = request.run(loader, guard=None)
    found = {one.slug: one for one in result.audit(loader, test=loader, metrics=CHECKS).findings}
    assert found["accuracy"].value == 0.0
    assert found["linear_probe"].value is not None
