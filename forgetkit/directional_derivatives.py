"""Directional derivatives of the logits by the weights, J v. Pure functions.

Forward differentiation makes J v in one reading of a batch, at a quarter of the time that
differentiating twice takes. Not every operation has a rule for it, and it looks into blocks that a
model runs under ``torch.no_grad``, which the gradient does not, so that J v would belong to another
J than J^T u. Whether u^T (J v) = (J^T u)^T v for a random u, on two samples, decides which of the
two ways is taken; that needs the gradient alone, and nothing that can be differentiated twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from forgetkit.per_sample import (
    LogitsOf,
    Parameters,
    detached,
    differentiable,
    mixes_types,
    on_device,
    pieces,
    wide_type,
)
from forgetkit.types import Batch

COMPARED = 2
"""Samples on which J v is compared with J^T u."""


class DirectionalDerivative:
    """J v for one v: called with a batch, returns (batch, classes).

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        vector: v, in the shapes of the parameters.
    """

    def __init__(self, logits_of: LogitsOf, parameters: Parameters, vector: Parameters) -> None:
        self._model = (logits_of, detached(parameters), vector)
        self._forward: bool | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Return J v of a batch."""
        if self._forward is None:
            self._forward = self._agrees(next(iter(pieces(batch, COMPARED))))
        return (
            by_forward_mode(*self._model, batch)
            if self._forward
            else by_double_backward(*self._model, batch)
        )

    def _agrees(self, batch: Batch) -> bool:
        """Say whether forward differentiation serves, and gives what the gradient gives."""
        try:
            found = by_forward_mode(*self._model, batch)
        except NotImplementedError:  # torch: an operation, or a custom function, without a rule
            return False
        except RuntimeError as error:
            if not mixes_types(error):
                raise
            return False
        drawn = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
        dual = drawn.to(found)
        pushed, pulled = (dual * found).double().cpu(), _pulled(*self._model, batch, dual)
        tolerance = torch.finfo(found.dtype).eps ** 0.5 * float(pushed.abs().sum())
        return bool(abs(float(pushed.sum()) - pulled) <= tolerance)


def by_forward_mode(
    logits_of: LogitsOf, parameters: Parameters, vector: Parameters, batch: Batch
) -> Tensor:
    """Return J v, (batch, classes), by forward differentiation.

    Raises:
        NotImplementedError: an operation of the model has no rule for it.
    """
    _load_rules()
    with differentiable(), torch.no_grad(), forward_ad.dual_level():
        dual = {
            name: forward_ad.make_dual(tensor, vector[name]) for name, tensor in parameters.items()
        }
        logits = logits_of(dual, on_device(batch.inputs, parameters))
        tangent = forward_ad.unpack_dual(logits).tangent
    return torch.zeros_like(logits) if tangent is None else tangent


@cache
def _load_rules() -> None:
    """Let torch import its rules, which warns of a torch function that they are written with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _pulled(
    logits_of: LogitsOf, parameters: Parameters, vector: Parameters, batch: Batch, dual: Tensor
) -> float:
    """Return (J^T u)^T v for a dual u, (batch, classes)."""
    with differentiable():
        leaves = {name: tensor.requires_grad_() for name, tensor in detached(parameters).items()}
        logits = logits_of(leaves, on_device(batch.inputs, leaves))
        if not logits.requires_grad:
            return 0.0
        found = torch.autograd.grad(logits, list(leaves.values()), dual, allow_unused=True)
    wide = wide_type(dual.device)
    total = torch.zeros((), dtype=wide, device=dual.device)
    for name, gradient in zip(leaves, found, strict=True):
        if gradient is not None:
            total += (gradient.to(wide) * vector[name].to(wide)).sum()
    return float(total)


def by_double_backward(
    logits_of: LogitsOf, parameters: Parameters, vector: Parameters, batch: Batch
) -> Tensor:
    """Return J v, (batch, classes): the derivative by u of v^T J^T u, which is linear in u."""
    with differentiable():
        leaves = {name: tensor.requires_grad_() for name, tensor in detached(parameters).items()}
        logits = logits_of(leaves, on_device(batch.inputs, leaves))
        if not logits.requires_grad:
            return torch.zeros_like(logits)
        dual = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(
            logits, list(leaves.values()), dual, create_graph=True, allow_unused=True
        )
        outputs, weights = linked(pulled, leaves, vector)
        if not outputs:
            return torch.zeros_like(dual)
        return torch.autograd.grad(outputs, dual, weights)[0]


def linked(
    found: tuple[Tensor | None, ...], leaves: Mapping[str, Tensor], vector: Parameters
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients that depend on something, with their part of the vector."""
    pairs = [
        (gradient, vector[name])
        for name, gradient in zip(leaves, found, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    return [gradient for gradient, _ in pairs], [weight for _, weight in pairs]
