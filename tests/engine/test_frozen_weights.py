"""Retraining leaves frozen layers as they are, whatever happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from forgetkit import forget
from forgetkit.errors import (
    ForgetkitError,
    ModelError,
)
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights


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
