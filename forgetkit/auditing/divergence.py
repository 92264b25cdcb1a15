"""How far apart predictions and distributions of numbers are. Pure functions, float64, in nats."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LN2 = math.log(2.0)


def entropy(log_probs: Tensor) -> Tensor:
    """Return H(p) = -sum p log p of each row, (rows,), in [0, log classes].

    Args:
        log_probs: (rows, classes); minus infinity stands for a probability of 0.
    """
    found: Tensor = torch.special.entr(log_probs.double().exp()).sum(dim=1)
    return found


def kl(reference: Tensor, model: Tensor) -> Tensor:
    """Return KL(reference || model) of each row, (rows,), in [0, infinity].

    What the reference has and the model lacks counts. The arguments come in the order of
    ``torchmetrics.KLDivergence``.

    Args:
        reference: (rows, classes) log-probabilities.
        model: (rows, classes) log-probabilities.
    """
    reference, model = reference.double(), model.double()
    terms = reference.exp() * (reference - model)
    return torch.where(reference.exp() > 0, terms, 0.0).sum(dim=1).clamp(min=0.0)


def js(left: Tensor, right: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each row, (rows,), in [0, log 2].

    Half the KL divergence of either side to their mean. scipy's ``jensenshannon`` is its square
    root.

    Args:
        left: (rows, classes) log-probabilities.
        right: (rows, classes) log-probabilities.
    """
    left, right = left.double(), right.double()
    middle = torch.logaddexp(left, right) - LN2
    return (kl(left, middle) + kl(right, middle)) / 2


def zrf(model: Tensor, untrained: Tensor) -> Tensor:
    """Return 1 - JS in bits of each row, (rows,), in [0, 1]: 1 is like untrained weights.

    Source: Chundawat, Tarun, Mandal, Kankanhalli, "Can Bad Teaching Induce Forgetting?",
    AAAI 2023: the zero retrain forgetting metric.

    Differences: released ports take an element-wise mean of ``kl_div``; this is the paper's form,
        in base 2 so that the range is [0, 1].
    """
    return 1.0 - js(model, untrained) / LN2


def differences(model: Tensor, reference: Tensor, norm: str) -> Tensor:
    """Return the norm of the difference of probabilities of each row, (rows,).

    Args:
        model: (rows, classes) log-probabilities.
        reference: (rows, classes) log-probabilities.
        norm: ``"l2"`` or ``"l1"``.
    """
    gap = model.double().exp() - reference.double().exp()
    return gap.norm(dim=1) if norm == "l2" else gap.abs().sum(dim=1)


def restricted(log_probs: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Return log-probabilities over some of the classes, made to sum to 1 again.

    Args:
        log_probs: (rows, classes).
        classes: the ones to keep, at least one.
    """
    return log_probs.double()[:, list(classes)].log_softmax(dim=1)


def distribution(labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each class occurs, (classes,) shares that sum to 1."""
    return torch.bincount(labels, minlength=num_classes).double() / len(labels)


def spread(shares: Tensor) -> float:
    """Return the entropy of a distribution divided by its largest value: 0 one class, 1 all."""
    if len(shares) < 2:
        return 0.0
    return float(torch.special.entr(shares.double()).sum()) / math.log(len(shares))


def shares_js(left: Tensor, right: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two distributions in nats."""
    return float(js(left.double().log()[None], right.double().log()[None])[0])


def bins_for(count: int) -> int:
    """Return how many bins so many numbers are cut into: their square root, within 5 and 30."""
    return min(max(math.isqrt(max(count, 0)), 5), 30)


def histogram_js(
    left: Tensor,
    right: Tensor,
    *,
    bins: int | None = None,
    span: tuple[float, float] | None = None,
) -> float:
    """Return the Jensen-Shannon divergence, in bits, of histograms with common bins: [0, 1].

    Args:
        left: (samples,) numbers.
        right: (samples,) numbers.
        bins: default by the size of the smaller sample, ``bins_for``.
        span: range of the bins; by default from the smallest number to the 95th percentile of all.
            What lies above shares the last bin, so that one large number cannot widen them all.
    """
    both = torch.cat([left, right]).double()
    low, high = span or (
        float(both.min()), float(torch.quantile(both, 0.95, interpolation="lower"))
    )  # fmt: skip
    if low == high:
        high = float(both.max())
    if low == high:
        return 0.0
    number = bins or bins_for(min(len(left), len(right)))
    heights = [
        torch.from_numpy(
            np.histogram(values.clamp(max=high).numpy(), bins=number, range=(low, high))[0]
        ).double()
        for values in (left, right)
    ]
    return shares_js(*(height / height.sum() for height in heights)) / LN2
