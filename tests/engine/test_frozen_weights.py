"""Frozen weights stay as they are, whatever a method does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from bare_cards import bare_card
from torch import Tensor, nn

from forgetkit import forget
from forgetkit.errors import ForgetkitError, ModelError, UnlearningFailed
from forgetkit.method import Card, Method
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


def test_retrain_leaves_frozen_weights_alone() -> None:
    some = toy("cnn")
    for parameter in some.model.get_submodule("body").parameters():
        parameter.requires_grad = False
    before = weights(some.model)
    frozen = [name for name, p in some.model.named_parameters() if not p.requires_grad]
    request = forget(some.model).classes([3]).using("retrain", epochs=1, lr=0.01).on("cpu")
    result = request.run(some.loader(), guard=None)
    moved = changed(weights(some.model), before)
    assert not set(frozen) & set(moved)
    assert "fc.weight" in moved
    assert any("not drawn anew" in note for note in result.notes)
    assert not any(name.startswith("body") for name in moved)  # running statistics included
    some.model.requires_grad_(requires_grad=False)
    with pytest.raises(ModelError, match="requires_grad"):
        request.run(some.loader(), guard=None)


class ZeroShot(nn.Module):
    """Compares features with fixed vectors, one a class, as of a text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.register_buffer("text", torch.randn(4, 16))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images) @ self.get_buffer("text").T
        return logits


@pytest.mark.parametrize("slug", ["lau", "linear_filtration"])
def test_a_head_of_fixed_numbers_is_refused(slug: str) -> None:
    request = forget(ZeroShot()).classes([3]).using(slug).on("cpu")
    with pytest.raises(ModelError, match=r"found fixed numbers .*; register them as nn.Parameter"):
        request.run(toy("cnn").loader())


def test_layers_whose_weights_are_made_of_others_are_not_called_frozen() -> None:
    some = toy("cnn")
    for module in some.model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.utils.parametrizations.weight_norm(module)
    with pytest.raises(ModelError, match="fold weight or spectral normalisation"):
        forget(some.model).classes([3]).using("pgu").on("cpu").run(some.loader())


@dataclass(frozen=True, kw_only=True)
class Careless(Method):
    """Writes to what it finds, whether it may change or not."""

    card: ClassVar[Card] = bare_card("careless", "all", "Writes to a tensor by its name.")

    def edit(self, run: Run) -> None:
        run.model.get_parameter("fc.weight").zero_()


class CarelessHead(Careless):
    """The same, of the head."""

    card: ClassVar[Card] = replace(Careless.card, slug="careless_head", edits="head")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", [Careless, CarelessHead])
def test_a_method_that_writes_to_a_frozen_weight_is_undone_and_named(
    kind: type[Careless], half: bool
) -> None:
    some = toy("cnn")
    model = some.model.bfloat16() if half else some.model
    model.get_parameter("fc.weight").requires_grad = False
    before = weights(model)
    request = forget(model).classes([3]).using(kind()).on("cpu")
    with pytest.raises(UnlearningFailed, match=r"careless.* found fc.weight changed.*grad_\(True"):
        request.run(some.loader(), guard=None)
    assert changed(before, weights(model)) == []
    model.get_parameter("fc.weight").requires_grad = True
    model.get_parameter("fc.bias").requires_grad = False
    request.run(some.loader(), guard=None)
    assert changed(before, weights(model)) == ["fc.weight"]


class Breaking(CarelessHead):
    """Breaks, before or after it has written to a weight outside of the head."""

    broken: ClassVar[type[Exception]] = RuntimeError
    writes: ClassVar[bool] = True

    def edit(self, run: Run) -> None:
        if self.writes:
            run.model.get_parameter("body.0.weight").zero_()
        raise self.broken("out of something")


@pytest.mark.parametrize("kind", [RuntimeError, ForgetkitError])
def test_a_head_run_that_breaks_after_writing_outside_does_not_say_that_all_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(Breaking, "broken", kind)
    some = toy("cnn")
    request = forget(some.model).classes([3]).using(Breaking()).on("cpu")
    words = r"found body.0.weight changed; load the model anew.*The run broke, too: .*of something"
    with pytest.raises(UnlearningFailed, match=words):
        request.run(some.loader(), guard=None)
    monkeypatch.setattr(Breaking, "writes", False)
    with pytest.raises(ForgetkitError, match="of something") as told:
        request.run(some.loader(), guard=None)
    assert "load the model anew" not in str(told.value)


class Stubborn(nn.Module):
    """Cannot be reset without being told how."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)


def test_a_reset_that_breaks_leaves_frozen_weights_as_they_were() -> None:
    some = toy("cnn")
    for parameter in some.model.get_submodule("body").parameters():
        parameter.requires_grad = False
    some.model.add_module("last", Stubborn())
    before = weights(some.model)
    with pytest.raises(ForgetkitError, match="std"):
        forget(some.model).classes([3]).using("retrain", epochs=1).on("cpu").run(some.loader())
    assert changed(weights(some.model), before) == []
