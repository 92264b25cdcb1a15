"""What chance in training makes of a number: how far models that were trained alike lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetkit.auditing.intervals import compared

if TYPE_CHECKING:
    from forgetkit.metric import Verdict


def beyond(value: float, others: Sequence[float], level: float = 0.95) -> bool | None:
    """Return whether a number lies outside the prediction interval of models trained alike.

        |v - m| > t s sqrt(1 + 1/r),  m, s = mean and deviation of the r others

    t is the two-sided quantile of Student's distribution with r - 1 degrees of freedom: of normal
    numbers, that of one more model is outside in one case of twenty, whatever r is.

    Args:
        value: of the model under audit.
        others: of the retrained models, one each.
        level: of the interval.

    Returns:
        ``None`` for fewer than two others, whose deviation is not known.
    """
    from scipy.stats import t

    if len(others) < 2:
        return None
    found = torch.tensor(others, dtype=torch.float64)
    quantile = float(t.ppf(0.5 + level / 2, len(others) - 1))
    half = quantile * float(found.std()) * math.sqrt(1 + 1 / len(others))
    return abs(value - float(found.mean())) > half


def wanting(models: int, fewest: int) -> str:
    """Return what is said of too few retrained models, or nothing."""
    if models >= fewest:
        return ""
    given = "1 was given" if models == 1 else f"{models} were given"
    return (
        f"{fewest} retrained models are needed to say how much they differ among themselves, and "
        f"{given}"
    )


def compared_trainings(
    found: Tensor, controls: Sequence[Tensor], *, seed: int = 0, more: Verdict = "residual"
) -> Verdict:
    """Return what a mean over samples says beside those of retrained models that differ widely.

    It differs when it does so surely from every one, by ``compared``, *and* lies beyond what
    another training would make of it. For numbers that two trainings never agree in, like how
    sure a model is: there every difference is sure, with samples enough.

    Args:
        found: (samples,) one number per sample, of the model under audit.
        controls: the same of each retrained model, samples in the same order.
        seed: of the bootstrap.
        more: the verdict when the audited model has more; less means the other one.

    Returns:
        As ``compared``; ``"not decidable"`` with fewer than two retrained models.
    """
    outside = beyond(float(found.mean()), [float(control.mean()) for control in controls])
    if outside is None:
        return "not decidable"
    verdict = compared(found, controls, seed=seed, more=more)
    return verdict if outside or verdict == "not decidable" else "as retrain"
