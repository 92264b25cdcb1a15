from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from forgetkit import forget, importance_of
from forgetkit.substitution import output_with, parameter_places
from forgetkit.testing import toy
from forgetkit.testing.trace import weights


class TwoNames(nn.Module):
    """A model that calls its parts by other names, too, as wrappers of trainers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy("cnn").model
        self.same = self.net
        self.head = self.net.get_submodule("fc")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


class TwoPlaces(nn.Module):
    """One parameter in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.other(self.one(rows))
        return logits


def test_a_module_of_two_names_keeps_its_own_parameters() -> None:
    model, images = TwoNames().eval(), toy("cnn").train.tensors[0][:4]
    held = [id(p) for p in model.parameters()]
    found = output_with(
        model, {n: torch.zeros_like(p) for n, p in model.named_parameters()}, images
    )
    assert isinstance(found, Tensor)
    assert not found.any()
    assert [id(p) for p in model.parameters()] == held
    assert len(list(parameter_places(model))) == len(held)


def test_a_parameter_in_two_places_is_replaced_in_both() -> None:
    model, rows = TwoPlaces(), torch.ones(2, 3)
    assert [path for path, _ in parameter_places(model)][::2] == ["one.weight", "other.weight"]
    bias = model.other.bias.detach()
    found = output_with(model, {"one.weight": torch.zeros(3, 3)}, rows)
    assert torch.equal(torch.as_tensor(found), bias.expand(2, 3))
    assert model.other.weight is model.one.weight


@pytest.mark.parametrize(
    ("slug", "settings"), [("lau", {}), ("linear_filtration", {}), ("ssd", {"threshold": 1.0})]
)
def test_a_model_whose_parts_have_two_names_forgets(slug: str, settings: dict[str, float]) -> None:
    some, model = toy("cnn"), TwoNames()
    before = weights(model)
    request = forget(model).classes([3]).using(slug, **settings).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert result.after["forget"].accuracy <= 0.1
    result.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_importance_leaves_the_parameters_in_their_places() -> None:
    model = TwoNames()
    held = [id(p) for p in model.parameters()]
    importance_of(model, toy("cnn").loader())
    assert [id(p) for p in model.parameters()] == held
