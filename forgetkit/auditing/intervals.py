"""How sure a number is: Wilson intervals, seeded bootstrap, and what a difference means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from forgetkit.errors import DataError

if TYPE_CHECKING:
    from forgetkit.metric import Verdict

RESAMPLES = 1000
FEWEST = 10
"""Samples below which a bootstrap says nothing: one value has an interval of no width."""
_AT_ONCE = 1 << 22  # drawn rows in memory at a time


def wilson(hits: float, samples: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, within [0, 1].

    Unlike the usual interval it does not shrink to nothing at 0 or 1: 0 of 100 gives
    [0, 0.037].

    Args:
        hits: how many of the samples; may be fractional for averaged labels.
        samples: at least 1.
        level: confidence.

    Raises:
        DataError: there is no sample, or the hits are not within 0 and their number.
    """
    if samples < 1 or not 0 <= hits <= samples:
        raise DataError(
            f"wilson: expected hits between 0 and a positive number of samples, found {hits} of "
            f"{samples}; measure a set that is not empty"
        )
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = hits / samples
    centre = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    low, high = (centre - half) / scale, (centre + half) / scale
    # exact ends: 0 of n gives 0 and n of n gives 1, whatever rounding says
    return (0.0 if hits == 0 else max(low, 0.0), 1.0 if hits == samples else min(high, 1.0))


def resampled_means(values: Tensor, *, seed: int = 0, resamples: int = RESAMPLES) -> Tensor:
    """Return the mean of each of many samples drawn with replacement, (resamples,) float64.

    Args:
        values: (samples,) one number per sample.
        seed: of the draws.
        resamples: how many.
    """
    values = values.double()
    generator = Generator().manual_seed(seed)
    parts = max(1, _AT_ONCE // max(len(values), 1))
    means = [
        values[torch.randint(len(values), (count, len(values)), generator=generator)].mean(dim=1)
        for count in [parts] * (resamples // parts) + [resamples % parts]
        if count > 0
    ]
    return torch.cat(means)


def percentile_interval(values: Tensor, level: float = 0.95) -> tuple[float, float] | None:
    """Return the central interval of resampled numbers; ``None`` when one is not finite."""
    if len(values) == 0 or not bool(torch.isfinite(values).all()):
        return None
    tail = (1 - level) / 2
    ends = torch.quantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(ends[0]), float(ends[1])


def mean_interval(values: Tensor, *, seed: int = 0) -> tuple[float, float] | None:
    """Return a bootstrap 95 % interval of a mean.

    ``None`` for fewer than ten samples, or when a value is not finite.
    """
    if len(values) < FEWEST or not bool(torch.isfinite(values).all()):
        return None
    return percentile_interval(resampled_means(values, seed=seed))


def compared(
    found: Tensor, controls: Sequence[Tensor], *, seed: int = 0, more: Verdict = "residual"
) -> Verdict:
    """Return what a mean over samples says beside those of retrained models.

    It differs when the 95 % bootstrap interval of the paired difference lies on one side of 0 for
    *every* retrained model: two of them also differ from each other.

    Args:
        found: (samples,) one number per sample, of the model under audit.
        controls: the same of each retrained model, samples in the same order.
        seed: of the bootstrap.
        more: the verdict when the audited model has more; less means the other one.

    Returns:
        ``"as retrain"``, ``"residual"``, ``"over-forgotten"``, or ``"not decidable"`` without a
        retrained model, with fewer than ten samples, or with values that are not finite.
    """
    ends = [mean_interval(found - control, seed=seed) for control in controls]
    known = [pair for pair in ends if pair is not None]
    if not known or len(known) < len(ends):
        return "not decidable"
    less: Verdict = "over-forgotten" if more == "residual" else "residual"
    if all(low > 0 for low, _ in known):
        return more
    if all(high < 0 for _, high in known):
        return less
    return "as retrain"
