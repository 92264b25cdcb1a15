"""Noise on retained images that leads their logits away from those of others. Pure functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from forgetkit.losses import cross_entropy

LogitsFunction = Callable[[Tensor], Tensor]
DISTANCES = ("l2", "l1", "cosine")


def ramp(batch: int, batches: int, start: float, end: float) -> float:
    """Return the value at one batch of a line from ``start`` (first) to ``end`` (last batch)."""
    if batches <= 1:
        return start
    return start + (end - start) * batch / (batches - 1)


def logit_distance(logits: Tensor, others: Tensor, kind: str) -> Tensor:
    """Return how far two rows of logits are apart, mean over the batch, in float32.

    ``"l2"`` is the mean square and ``"l1"`` the mean absolute difference over batch and classes;
    ``"cosine"`` is minus the cosine similarity of the rows, from -1 to 1. Squares of float16
    logits would overflow.
    """
    left, right = logits.float(), others.float()
    if kind == "l2":
        return (left - right).square().mean()
    if kind == "l1":
        return (left - right).abs().mean()
    return -functional.cosine_similarity(left, right, dim=1).mean()


def objective(
    logits: Tensor, labels: Tensor, others: Tensor, *, weight: float, distance: str
) -> tuple[Tensor, Tensor]:
    """Return both parts of J = distance - weight * task; their sum is J, to be maximised.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices or (batch, classes) 0/1.
        others: (batch, classes) logits to move away from, row by row.
        weight: w.
        distance: one of ``DISTANCES``.
    """
    apart = logit_distance(logits, others, distance)
    return apart, -weight * cross_entropy(logits, labels)


def guided_images(
    images: Tensor,
    labels: Tensor,
    others: Tensor,
    logits_of: LogitsFunction,
    *,
    weight: float,
    distance: str,
    steps: int,
    step: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Return images moved by signed steps that raise J; neither weights nor gradients change.

    Only the gradient with respect to the noise is computed. A pixel that the clamp holds back has
    a gradient of 0 and stays where it is.

    Args:
        images: (batch, channels, ...) or any other float inputs.
        labels: of the images, which they should keep.
        others: (batch, classes) logits to move away from.
        logits_of: the model, in eval mode.
        weight: of the task against the distance; w.
        distance: one of ``DISTANCES``.
        steps: number of steps; s.
        step: length of a step, broadcastable to the images; a.
        low: smallest pixel, broadcastable to the images.
        high: largest pixel, in the same way.

    Source: Guided Loss-Increasing (supplement), inner loop.
    """
    noise = torch.zeros_like(images)
    for _ in range(steps):
        noise.requires_grad_()
        with torch.enable_grad():
            logits = logits_of(torch.clamp(images + noise, low, high))
            parts = objective(logits, labels, others, weight=weight, distance=distance)
            (gradient,) = torch.autograd.grad(parts[0] + parts[1], noise)
        noise = noise.detach() + step * gradient.sign()
    return torch.clamp(images + noise, low, high)


def widened(low: Tensor, high: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a range of pixels that also holds these images, so that a clamp cuts none of them.

    Args:
        low: smallest pixel: one for each channel of images (batch, channels, ...), else one.
        high: largest pixel, in the same shape.
        images: float inputs.
    """
    channels = images.ndim > 2
    held = [0, *range(2, images.ndim)] if channels else list(range(images.ndim))
    return (
        torch.minimum(low, images.amin(dim=held, keepdim=channels)),
        torch.maximum(high, images.amax(dim=held, keepdim=channels)),
    )
