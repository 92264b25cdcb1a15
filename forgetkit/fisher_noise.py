"""How much noise a weight may get: much where the Fisher information of the data is small."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

FLOOR = 1e-8
"""Added to the Fisher information, as in the published code."""


def noise_variance(
    fisher: Tensor,
    strength: float,
    *,
    exponent: float = 0.5,
    cap: float | None = None,
    averaged: bool = False,
) -> Tensor:
    """Return the variance of each weight's noise, shaped as ``fisher``.

        v = (strength min(1 / (F + 1e-8), cap))^(2 exponent)

    Args:
        fisher: F, the diagonal of the Fisher matrix for one tensor.
        strength: alpha.
        exponent: power of 1/F in the standard deviation.
        cap: largest 1/F; ``None`` for no limit.
        averaged: whether every output unit takes the mean over its inputs (axis 1).
    """
    inverse = 1.0 / (fisher + FLOOR)
    if cap is not None:
        inverse = inverse.clamp(max=cap)
    variance = (strength * inverse) ** (2.0 * exponent)
    if averaged and variance.ndim > 1:
        variance = variance.mean(dim=1, keepdim=True).expand_as(variance).clone()
    return variance


def noise(variance: Tensor, generator: Generator) -> Tensor:
    """Return normal noise of this variance, drawn on the CPU so that devices agree."""
    drawn = torch.randn(variance.shape, generator=generator, dtype=torch.float32)
    return variance.sqrt() * drawn.to(variance)
