"""What lies between the sums of a head's affine layers and the logits, found by probing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_EXACT = 1e-5


@torch.no_grad()
def bias_gains(
    logits_of: Callable[[], Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Return the logits of a head of zeros, and what a step of each bias adds to them.

    Args:
        logits_of: to the logits of one sample with the live tensors, (classes,).
        weights: of each affine layer; back to their values on return, like ``biases``.
        biases: of each affine layer, (classes,).
        step: (classes,).

    Returns:
        Logits (classes,), and one more of them for each layer.
    """
    kept = [(tensor, tensor.clone()) for tensor in (*weights, *biases)]
    gains = []
    try:
        for tensor, _ in kept:
            tensor.zero_()
        rest = logits_of()
        for bias in biases:
            bias.copy_(step)
            gains.append(logits_of() - rest)
            bias.zero_()
    finally:
        for tensor, value in kept:
            tensor.copy_(value)
    return rest, gains


def uneven_step(classes: int) -> Tensor:
    """Return a step that tells the classes apart, (classes,) in [1, 2)."""
    return 1 + torch.arange(classes) % 64 / 64


def same_for_every_class(rest: Tensor, gains: Sequence[Tensor], step: Tensor) -> bool:
    """Tell whether logits are a sum of positive multiples of what the layers add up.

    Args:
        rest: as found by ``bias_gains`` for an uneven step.
        gains: as found by ``bias_gains``.
        step: that step.
    """
    for gain in gains:
        factors = gain / step.to(gain)
        low, high = float(factors.min()), float(factors.max())
        if low <= 0 or high - low > _EXACT * high or float(rest.abs().max()) > _EXACT * low:
            return False
    return True
