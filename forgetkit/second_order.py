"""Products with the Jacobian, the Gauss-Newton matrix and the Hessian of a set. Pure functions.

Vectors over the parameters are flat, (P,), in the order of the dict; losses are summed over the
samples. Any model that autograd can differentiate twice will do. A set is read once a product: a
solver needs a list of batches, because a loader with random augmentation gives other samples each
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from forgetkit.directional_derivatives import DirectionalDerivative, linked
from forgetkit.losses import cross_entropy
from forgetkit.moving import sent
from forgetkit.per_sample import (
    LogitsOf,
    Parameters,
    SampleLoss,
    detached,
    device_of,
    differentiable,
    on_device,
    per_sample_gradients,
    wide_type,
)
from forgetkit.types import Batch, Inputs


def flat(tensors: Parameters) -> Tensor:
    """Return one vector, (P,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def shaped(vector: Tensor, like: Parameters) -> dict[str, Tensor]:
    """Return the pieces of a flat vector in the shapes and types of ``like``."""
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {
        name: piece.view(tensor.shape).to(tensor.dtype)
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }


def hessian_product(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    vector: Tensor,
    *,
    loss: SampleLoss = cross_entropy,
) -> Tensor:
    """Return H v for the Hessian H of the loss summed over the samples, (P,).

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: what to read.
        vector: v, (P,).
        loss: mean over a batch.
    """
    total = torch.zeros_like(vector)
    for batch in batches:
        with differentiable():
            leaves, logits, labels = _forward(logits_of, parameters, batch)
            value = loss(logits, labels) * len(labels)
            first = torch.autograd.grad(
                value, list(leaves.values()), create_graph=True, allow_unused=True
            )
            total += _product(first, leaves, shaped(vector, leaves)).to(total.dtype)
    return total


def gauss_newton_product(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    vector: Tensor,
    *,
    loss: SampleLoss = cross_entropy,
) -> Tensor:
    """Return G v, (P,), with G = sum over samples of J^T L J, L the loss's Hessian by the logits.

    G is positive semi-definite when the loss is convex in the logits, and equals the Hessian for a
    model that is linear in its parameters.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: what to read.
        vector: v, (P,).
        loss: mean over a batch.
    """
    total = torch.zeros_like(vector)
    push = DirectionalDerivative(logits_of, parameters, shaped(vector, parameters))
    for batch in batches:
        with differentiable():
            change = push(batch)
            leaves, logits, labels = _forward(logits_of, parameters, batch)
            free = logits.detach().requires_grad_()
            value = loss(free, labels) * len(labels)
            slope = torch.autograd.grad(value, free, create_graph=True)[0]
            bent = torch.zeros_like(free)
            if slope.requires_grad:  # a loss that is linear in the logits has no curvature
                bent = torch.autograd.grad(slope, free, change)[0]
            total += _back(logits, leaves, bent).to(total.dtype)
    return total


def pull_back(
    logits_of: LogitsOf, parameters: Parameters, batches: Iterable[Batch], cotangents: Tensor
) -> Tensor:
    """Return J^T u, (P,), in float64 where there is one.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: what to read.
        cotangents: u, (samples, classes), in the order of the reading.
    """
    count = sum(p.numel() for p in parameters.values())
    device = device_of(parameters)
    total = torch.zeros(count, dtype=wide_type(device), device=device)
    start = 0
    for batch in batches:
        with differentiable():
            leaves, logits, labels = _forward(logits_of, parameters, batch)
            own = cotangents[start : start + len(labels)].to(logits)
            start += len(labels)
            total += _back(logits, leaves, own)
    return total


def push_forward(
    logits_of: LogitsOf, parameters: Parameters, batches: Iterable[Batch], vector: Tensor
) -> Tensor:
    """Return J v, (samples, classes), in the order of the reading.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: what to read.
        vector: v, (P,).
    """
    push = DirectionalDerivative(logits_of, parameters, shaped(vector, parameters))
    return torch.cat([push(batch).to(vector.dtype) for batch in batches])


def jacobian(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    *,
    classes: int,
    columns: tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """Yield rows of J, (samples x classes, columns), by chunk: a sample's classes stand together.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: what to read.
        classes: number of logits.
        columns: first column and the one after the last, of the P of J; default all. Tensors with
            no column among them are not differentiated by.
    """
    losses = [_one_logit(label) for label in range(classes)]
    inside = _within(parameters, columns)
    moved = {name: parameters[name] for name in inside}

    def partly(some: Parameters, inputs: Inputs) -> Tensor:
        return logits_of({**parameters, **some}, inputs)

    group: list[Tensor] = []
    for found in per_sample_gradients(partly, moved, batches, losses=losses):
        wide = [found[name].reshape(len(found[name]), -1)[:, cut] for name, cut in inside.items()]
        group.append(torch.cat(wide, dim=1))
        if len(group) == classes:
            yield torch.stack(group, dim=1).flatten(0, 1)
            group = []


def _within(parameters: Parameters, columns: tuple[int, int] | None) -> dict[str, slice]:
    """Return the tensors that have some of the columns, and which of their own these are."""
    start, stop = columns or (0, sum(tensor.numel() for tensor in parameters.values()))
    inside, position = {}, 0
    for name, tensor in parameters.items():
        end = position + tensor.numel()
        if position < stop and end > start:
            inside[name] = slice(max(start - position, 0), min(stop, end) - position)
        position = end
    return inside


def _one_logit(label: int) -> SampleLoss:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001  a loss is called with both
        return logits[:, label].mean()

    return loss


def _forward(
    logits_of: LogitsOf, parameters: Parameters, batch: Batch
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return leaves that stand for the parameters, logits and labels of a batch."""
    leaves = {name: tensor.requires_grad_() for name, tensor in detached(parameters).items()}
    logits = logits_of(leaves, on_device(batch.inputs, leaves))
    return leaves, logits, sent(batch.labels, logits.device)


def _back(logits: Tensor, leaves: Parameters, cotangents: Tensor) -> Tensor:
    """Return J^T u, (P,)."""
    found = torch.autograd.grad(logits, list(leaves.values()), cotangents, materialize_grads=True)
    return _without_history(leaves, found)


def _product(first: tuple[Tensor | None, ...], leaves: Parameters, vector: Parameters) -> Tensor:
    """Return the derivative of ``first . v`` by the leaves, (P,)."""
    outputs, weights = linked(first, leaves, vector)
    if not outputs:
        return flat({name: torch.zeros_like(leaf) for name, leaf in leaves.items()})
    found = torch.autograd.grad(outputs, list(leaves.values()), weights, materialize_grads=True)
    return _without_history(leaves, found)


def _without_history(leaves: Parameters, found: tuple[Tensor, ...]) -> Tensor:
    """Return one vector; before PyTorch 2.10 gradients of nothing but zeros have a history."""
    return flat(dict(zip(leaves, found, strict=True))).detach()
