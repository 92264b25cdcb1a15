from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from forgetkit import directional_derivatives
from forgetkit.directional_derivatives import (
    DirectionalDerivative,
    by_double_backward,
    by_forward_mode,
)
from forgetkit.per_sample import LogitsOf, Parameters
from forgetkit.testing import toy
from forgetkit.types import Batch, Inputs


def as_function(model: nn.Module) -> tuple[LogitsOf, dict[str, Tensor]]:
    def logits_of(parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, dict(parameters), (inputs,))
        return logits

    return logits_of, {name: p.detach() for name, p in model.eval().named_parameters()}


def random_like(parameters: Parameters) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in parameters.items()}


def batch_of(inputs: Tensor) -> Batch:
    labels = torch.zeros(len(inputs), dtype=torch.long)
    return Batch(inputs, labels, torch.arange(len(inputs)), len(inputs))


class Counted:
    """Stands for ``by_double_backward`` and counts its samples."""

    def __init__(self) -> None:
        self.samples = 0

    def __call__(
        self, logits_of: LogitsOf, parameters: Parameters, vector: Parameters, batch: Batch
    ) -> Tensor:
        self.samples += len(batch.labels)
        return by_double_backward(logits_of, parameters, vector, batch)


class Rounded(torch.autograd.Function):
    """Rounds forward and passes the gradient: an operation without a forward rule."""

    @staticmethod
    def forward(ctx: object, features: Tensor) -> Tensor:
        return features.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Odd(nn.Module):
    """A network whose features pass through something unusual."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.backbone = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kind == "no_grad":
            with torch.no_grad():
                features = self.backbone(inputs)
        else:
            features = Rounded.apply(self.backbone(inputs))
        logits: Tensor = self.head(features)
        return logits


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_both_ways_agree_and_forward_is_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    some = toy(kind)
    images = some.train.tensors[0][:9].double()
    logits_of, parameters = as_function(some.model.double())
    vector = random_like(parameters)
    model = (logits_of, parameters, vector, batch_of(images))
    expected = by_double_backward(*model)
    assert float(expected.abs().max()) > 0.0
    assert torch.allclose(by_forward_mode(*model), expected, rtol=1e-9)
    twice = Counted()
    monkeypatch.setattr(directional_derivatives, "by_double_backward", twice)
    push = DirectionalDerivative(logits_of, parameters, vector)
    assert torch.equal(push(batch_of(images)), by_forward_mode(*model))
    push(batch_of(images))
    assert twice.samples == 0


@pytest.mark.parametrize("kind", ["no_grad", "custom"])
def test_what_forward_differentiation_gets_wrong_is_differentiated_twice(kind: str) -> None:
    logits_of, parameters = as_function(Odd(kind))
    vector, inputs = random_like(parameters), torch.randn(5, 4)
    found = DirectionalDerivative(logits_of, parameters, vector)(batch_of(inputs))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    logits = logits_of(leaves, inputs)
    for row, sample in enumerate(logits):
        for column, logit in enumerate(sample):
            gradients = torch.autograd.grad(
                logit, list(leaves.values()), retain_graph=True, materialize_grads=True
            )
            slope = sum((g * vector[name]).sum() for name, g in zip(leaves, gradients, strict=True))
            assert float(found[row, column]) == pytest.approx(float(slope), abs=1e-5)


def test_an_operation_that_cannot_be_differentiated_twice_is_no_obstacle() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Hardsigmoid(), nn.Linear(6, 3)).double()
    logits_of, parameters = as_function(model)
    vector, inputs = random_like(parameters), torch.randn(5, 4).double()
    with pytest.raises(RuntimeError, match="hardsigmoid_backward is not implemented"):
        by_double_backward(logits_of, parameters, vector, batch_of(inputs))
    found = DirectionalDerivative(logits_of, parameters, vector)(batch_of(inputs))
    step = 1e-6
    ahead, behind = (
        logits_of({n: p + sign * step * vector[n] for n, p in parameters.items()}, inputs)
        for sign in (1, -1)
    )
    assert torch.allclose(found, (ahead - behind) / (2 * step), atol=1e-7)


class HalfInside(nn.Module):
    """Computes in half precision whatever is on outside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy("cnn").model

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.net(images)
        return logits.float()


def test_an_autocast_in_the_model_is_no_obstacle() -> None:
    logits_of, parameters = as_function(HalfInside())
    vector, batch = random_like(parameters), batch_of(toy("cnn").train.tensors[0][:4])
    with pytest.raises(RuntimeError, match="type"):
        by_forward_mode(logits_of, parameters, vector, batch)
    found = DirectionalDerivative(logits_of, parameters, vector)(batch)
    assert torch.equal(found, by_double_backward(logits_of, parameters, vector, batch))


def test_weights_that_the_logits_do_not_use_give_zeros() -> None:
    parameters = {"unused": torch.ones(3)}

    def logits_of(_: Parameters, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return inputs.sum(dim=1, keepdim=True)

    found = DirectionalDerivative(logits_of, parameters, parameters)(batch_of(torch.randn(4, 2)))
    assert torch.equal(found, torch.zeros(4, 1))
