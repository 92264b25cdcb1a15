"""Runs of the head on models of half precision whose head is frozen in part, or of two types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights


class Adapted(nn.Module):
    """A frozen linear layer with a trainable one of two ranks beside it, as PEFT makes them."""

    def __init__(self, base: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False, dtype=dtype)
        self.up = nn.Linear(2, base.out_features, bias=False, dtype=dtype)
        base.weight.requires_grad = False
        assert base.bias is not None
        base.bias.requires_grad = False

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.base(features)
        added: Tensor = self.up(self.down(features.to(self.down.weight.dtype)))
        return (logits + added).to(logits.dtype)


def run(model: nn.Module, images: torch.dtype = torch.float32) -> Any:  # noqa: ANN401  Result
    some = toy("cnn")
    data = TensorDataset(some.train.tensors[0].to(images), some.train.tensors[1])
    loader = DataLoader(data, batch_size=32)
    before, held = weights(model), {n: p.data_ptr() for n, p in model.named_parameters()}
    free = {name for name, p in model.named_parameters() if p.requires_grad and "fc" in name}
    result = forget(model).classes([3]).using("lau").on("cpu").run(loader, guard=None)
    after = weights(model)
    assert set(changed(before, after)) == set(result.patch.names) <= free
    assert all(after[name].dtype == value.dtype for name, value in before.items())
    assert held == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert result.after["forget"].accuracy == 0.0
    with torch.no_grad():
        logits = model.eval()(some.train.tensors[0].bfloat16())
    assert float((logits.argmax(1) == 3)[some.train.tensors[1] == 3].float().mean()) == 0.0
    result.undo()
    assert not changed(before, weights(model))
    return result


def test_a_frozen_bias_beside_a_half_weight() -> None:
    model = toy("cnn").model.bfloat16()
    model.get_parameter("fc.bias").requires_grad = False
    run(model)


@pytest.mark.parametrize("images", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
def test_an_adapter_on_a_frozen_half_head(adapter: torch.dtype, images: torch.dtype) -> None:
    model: Any = toy("cnn").model.bfloat16()
    model.fc = Adapted(model.fc, adapter)
    run(model, images)


def test_mixed_precision_of_a_head_of_two_types() -> None:
    model: Any = toy("cnn").model.bfloat16()
    model.fc = Adapted(model.fc, torch.float32)
    request = forget(model).classes([3]).using("lau").on("cpu", mixed_precision="bf16")
    assert request.run(toy("cnn").loader(), guard=None).after["forget"].accuracy == 0.0
