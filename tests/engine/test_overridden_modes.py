"""Layers that do something of their own when they are put into train or eval mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from bare_cards import bare_card
from torch import Tensor, nn
from typing_extensions import Self

from forgetkit import UnlearningFailed, forget
from forgetkit.engine.modes import evaluating
from forgetkit.engine.outside import Outside
from forgetkit.engine.run import Run
from forgetkit.method import Card, Method
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights


class Merging(nn.Linear):
    """Adds an adapter to its frozen weight in eval mode, and takes it off in train mode."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(0.3 * torch.randn(2, inputs))
        self.up = nn.Parameter(0.3 * torch.randn(outputs, 2))
        self.weight.requires_grad = False
        self.merged = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode == self.merged:
            sign = -1.0 if mode else 1.0
            self.weight.data += sign * (self.up.data @ self.down.data)
            self.merged = not mode
        return self

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input)
        return found if self.merged else found + input @ self.down.T @ self.up.T


def merging(*, trained: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), Merging(64, 16), nn.ReLU(), nn.Linear(16, 4)
    ).train(trained)  # fmt: skip


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("method", ["lau", "delete", "scrub"])
def test_an_adapter_is_neither_merged_nor_taken_off(method: str, trained: bool) -> None:
    model, some = merging(trained=trained), toy("cnn")
    before, layer = weights(model), model.get_submodule("1")
    assert isinstance(layer, Merging)
    options = {} if method == "lau" else {"epochs": 1}
    request = forget(model).classes([3]).using(method, **options).on("cpu")
    result = request.run(some.loader(), guard=None)
    moved = changed(before, weights(model))
    assert layer.merged != trained
    assert set(moved) == set(result.patch.names)
    assert "1.weight" not in moved
    result.undo()
    assert not changed(before, weights(model))


def test_the_original_of_a_run_has_the_weights_that_came_in() -> None:
    model = merging()
    before = weights(model)
    seen: list[list[str]] = []

    @dataclass(frozen=True, kw_only=True)
    class Looking(Method):
        card: ClassVar[Card] = Card(
            slug="looking", title="Looking", goals=("classes",), needs=("forget",), edits="all",
            steps="none", cost="none", source="none", link="https://example.org", about="Looks.",
        )  # fmt: skip

        def edit(self, run: Run) -> None:
            seen.append(changed(before, weights(run.original)))

    forget(model).classes([3]).using(Looking()).on("cpu").run(toy("cnn").loader(), guard=None)
    assert seen == [[]]


def test_flags_come_back_one_by_one() -> None:
    model = toy("cnn").model.train()
    model.get_submodule("body").eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


@dataclass(frozen=True, kw_only=True)
class Straying(Method):
    """Says that it edits the head, and writes to what lies before it."""

    card: ClassVar[Card] = bare_card(
        "straying", "head", "Writes to a tensor by its name, so that torch does not count it."
    )

    def edit(self, run: Run) -> None:
        run.model.get_parameter("body.0.weight").data.mul_(2.0)


def test_a_run_of_the_head_that_changes_the_rest_is_refused() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using(Straying()).on("cpu")
    with pytest.raises(UnlearningFailed, match=r"straying: .* found body\.0\.weight changed; load"):
        request.run(some.loader(), guard=None)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex128, torch.int8]
)
def test_a_changed_bit_is_seen_whatever_type_and_strides(dtype: torch.dtype) -> None:
    wide = torch.arange(24).reshape(2, 3, 4).to(dtype)
    one, none = torch.tensor(3).to(dtype), torch.empty(0, 3, dtype=dtype)
    tensors = {"wide": wide, "turned": wide.clone().mT, "one": one, "none": none}
    outside = Outside(tensors)
    outside.require_kept("some")
    for name in ("wide", "turned", "one"):
        kept = tensors[name].clone()
        tensors[name].add_(1)
        with pytest.raises(UnlearningFailed, match=f"found {name} changed"):
            outside.require_kept("some")
        tensors[name].copy_(kept)
    outside.require_kept("some")
