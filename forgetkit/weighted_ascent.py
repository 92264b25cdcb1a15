"""Ascent on the cross-entropy with weights that depend on each sample's loss. Pure functions."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

FLOOR = 1e-4
"""Smallest loss that is raised to the power: a memorised sample would get all the weight."""


def loss_weights(losses: Tensor, power: float) -> Tensor:
    """Return weights proportional to loss^-power with mean 1, (samples,); no gradient.

    Source: Huang et al., NeurIPS 2024, Section 4 (adaptive coefficients).
    """
    weights = losses.detach().clamp(min=FLOOR) ** -power
    return weights / weights.mean()


def weighted_ascent(logits: Tensor, labels: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return minus the weighted mean cross-entropy, and how many samples were beyond the cap.

    A loss above 2 log K + 5 nats no longer counts.
    """
    if len(labels) == 0:
        return logits.sum() * 0.0, labels.new_zeros(())
    each = functional.cross_entropy(logits.float(), labels, reduction="none")
    below = each.detach() <= 2 * math.log(logits.shape[1]) + 5
    return -(loss_weights(each, power) * each * below).mean(), (~below).sum()
