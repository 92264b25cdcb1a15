"""Pure functions of selective synaptic dampening: which weights shrink, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from forgetkit.errors import DataError


def dampened(forget: Tensor, everything: Tensor, threshold: float) -> Tensor:
    """Return which entries matter more to D_f than to D by more than a factor: I_f > alpha I_D.

    What matters to D_f alone is selected whatever the factor, an infinite one too.

    Args:
        forget: importance to D_f, any shape, not negative.
        everything: importance to D, same shape.
        threshold: the factor alpha.
    """
    return torch.where(everything > 0, forget > threshold * everything, forget > 0)


def multipliers(forget: Tensor, everything: Tensor, *, threshold: float, strength: float) -> Tensor:
    """Return what each weight is multiplied by: min(1, lambda I_D / I_f) where selected, else 1.

    A weight that matters to D_f and not at all to D becomes 0.

    Args:
        forget: importance to D_f, any shape, not negative.
        everything: importance to D, same shape.
        threshold: selection factor alpha.
        strength: dampening constant lambda.

    Returns:
        Same shape, in [0, 1].

    Source: Foster, Schoepf, Brintrup, AAAI 2024, arXiv:2308.07707, Eq. 6.
    """
    selected = dampened(forget, everything, threshold)
    # Where selected, I_f is positive; elsewhere the quotient is never used.
    quotient = strength * everything / torch.where(selected, forget, torch.ones_like(forget))
    return torch.where(selected, quotient.clamp(max=1.0), torch.ones_like(forget))


def percentile(forget_share: float, selection: float = 1.0) -> float:
    """Return the percentile of the ratios I_f / I_D above which weights shrink, in percent.

        max(100 - c ln(1 + 100 n_f / n), 0)

    Args:
        forget_share: n_f / n, in (0, 1].
        selection: the factor c, 1 in the paper.

    Source: Schoepf, Foster, Brintrup, "Parameter-tuning-free data entry error unlearning with
        adaptive selective synaptic dampening", 2024, arXiv:2402.10098.
    """
    return max(100.0 - selection * math.log(1.0 + 100.0 * forget_share), 0.0)


def adaptive_threshold(
    forget: Mapping[str, Tensor],
    everything: Mapping[str, Tensor],
    forget_share: float,
    *,
    selection: float = 1.0,
) -> float:
    """Return the selection factor: a percentile of all ratios I_f / I_D, 0/0 left out.

    The percentile lies at position p (N - 1) / 100 of the N sorted ratios, with linear
    interpolation between the two beside it. A ratio with I_D = 0 counts as infinite.

    Args:
        forget: importance to D_f by name.
        everything: importance to D by name.
        forget_share: n_f / n, in (0, 1].
        selection: multiplies the share of weights above the threshold.

    Raises:
        DataError: no parameter matters to anything.
    """
    ratios = torch.cat(
        [
            (importance / everything[name])[(importance > 0) | (everything[name] > 0)]
            for name, importance in forget.items()
        ]
    )
    if ratios.numel() == 0:
        raise DataError(
            "importance: expected weights with a gradient on the samples, found none; check that "
            "the labels are those that the model was trained on"
        )
    position = percentile(forget_share, selection) / 100.0 * (ratios.numel() - 1)
    below, above = math.floor(position), math.ceil(position)
    low = float(ratios.kthvalue(below + 1).values)
    high = float(ratios.kthvalue(above + 1).values)
    if low == high or math.isinf(low):
        return low
    return low + (position - below) * (high - low)


def dampen(
    parameters: Mapping[str, Tensor],
    forget: Mapping[str, Tensor],
    everything: Mapping[str, Tensor],
    *,
    threshold: float,
    strength: float,
) -> int:
    """Multiply every weight by its multiplier, in place, and return how many were selected.

    Args:
        parameters: weights by name; gradients must be off.
        forget: importance to D_f by name.
        everything: importance to D by name.
        threshold: selection factor alpha.
        strength: dampening constant lambda.
    """
    count = 0
    for name, parameter in parameters.items():
        own, all_of_it = forget[name], everything[name]
        factors = multipliers(own, all_of_it, threshold=threshold, strength=strength)
        parameter.mul_(factors.to(parameter.dtype))
        count += int(dampened(own, all_of_it, threshold).sum())
    return count
