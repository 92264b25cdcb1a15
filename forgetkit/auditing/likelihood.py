"""Per-sample membership attacks against reference models: LiRA, U-LiRA, RMIA. Pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from forgetkit.errors import DataError

POOL_BELOW = 16
"""Reference models of each kind below which one variance is pooled over all samples."""
SMALLEST_DEVIATION = 1e-3
"""Keeps a density finite where all reference models agree."""


def logit_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return phi = z_y - logsumexp of the other logits = log(p / (1 - p)), in float64.

    Args:
        logits: (..., samples, classes); log-probabilities give the same.
        labels: (samples,) classes that the probability is of.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
        section IV.C, from logits so that nothing rounds to 0 or 1.
    """
    scores = logits.double()
    own = torch.nn.functional.one_hot(labels, scores.shape[-1]).bool().expand(scores.shape)
    rest = scores.masked_fill(own, -torch.inf).logsumexp(dim=-1)
    return scores.masked_fill(~own, -torch.inf).amax(dim=-1) - rest


def gaussian(
    values: Tensor, deviation: Tensor | None = None, *, ddof: int = 0
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of phi over models, each (samples,).

    Args:
        values: (models, samples).
        deviation: a pooled one to use instead of each sample's own.
        ddof: 0 divides the sum of squares by the number of models, 1 by one less.

    Raises:
        DataError: there are not more models than ``ddof``.
    """
    mean = values.double().mean(dim=0)
    if deviation is None:
        deviation = _variance(values, ddof).sqrt()
    return mean, deviation.clamp(min=SMALLEST_DEVIATION).expand_as(mean)


def pooled_deviation(*groups: Tensor, ddof: int = 0) -> Tensor:
    """Return the root of the mean variance over all samples of all groups, a scalar.

    Args:
        groups: (models, samples) phi of each kind of models.
        ddof: as in ``gaussian``.
    """
    return torch.cat([_variance(values, ddof) for values in groups]).mean().sqrt()


def gaussians(
    inside: Tensor, outside: Tensor, *, pooled: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return mean and deviation of both kinds of models.

    Args:
        inside: (models, samples) phi of the "in" models.
        outside: the same of the "out" models.
        pooled: whether all samples and both kinds share one deviation.
    """
    shared = pooled_deviation(inside, outside) if pooled else None
    return gaussian(inside, shared), gaussian(outside, shared)


def log_density(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the logarithm of normal densities."""
    z = (values - mean) / deviation
    density: Tensor = -0.5 * z.square() - deviation.log() - 0.5 * math.log(2 * math.pi)
    return density


def likelihood_ratio(
    target: Tensor, inside: tuple[Tensor, Tensor], outside: tuple[Tensor, Tensor]
) -> Tensor:
    """Return Lambda = log N(phi; in) - log N(phi; out), (samples,). Higher: member.

    U-LiRA: the "in" models were trained with the sample and then unlearned by the method under
    test; LiRA: they were trained with it and kept.

    Args:
        target: (samples,) phi of the model under attack.
        inside: mean and deviation of the "in" models.
        outside: mean and deviation of the "out" models.
    """
    return log_density(target, *inside) - log_density(target, *outside)


def membership_probability(ratio: Tensor) -> Tensor:
    """Return p_in / (p_in + p_out) from the log ratio, (samples,)."""
    return ratio.sigmoid()


def standard_score(target: Tensor, outside: tuple[Tensor, Tensor]) -> Tensor:
    """Return (phi - mean_out) / deviation_out, (samples,): LiRA without "in" models.

    The paper's score is Phi of it, which ranks samples alike, but is 1.0 for all above 8.
    """
    mean, deviation = outside
    return (target - mean) / deviation


def average_probability(outside: Tensor, a: float) -> Tensor:
    """Return the estimated mean probability over models with and without the sample, (samples,).

    p_bar = ((1 + a) mean_out p + (1 - a)) / 2: models that saw a sample answer it with a
    probability that lies the share 1 - a of the way to 1.

    Args:
        outside: (models, samples) probability of the label in models that did not see the sample.
        a: in [0, 1].

    Source: Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks",
        ICML 2024, section 3.
    """
    return 0.5 * ((1 + a) * outside.mean(dim=0) + (1 - a))


def relative_score(sample: Tensor, population: Tensor, gamma: float = 1.0) -> Tensor:
    """Return the share of the population that each sample dominates, (samples,).

    score(x) = share of z with ratio(x) / ratio(z) > gamma, ratio = p / p_bar.

    Args:
        sample: (samples,) ratios of the samples in question.
        population: (others,) ratios of samples that were surely not trained on.
        gamma: how much larger a ratio must be.

    Source: RMIA (as above), Eq. 2; strictly greater as in its reference implementation.
    """
    ordered = (gamma * population.double()).sort().values
    below = torch.searchsorted(ordered, sample.double().contiguous(), right=False)
    return below.double() / len(ordered)


def _variance(values: Tensor, ddof: int) -> Tensor:
    models = len(values)
    if models <= ddof:
        raise DataError(
            f"values: expected at least {ddof + 1} reference models, found {models}; train more"
        )
    return (values.double() - values.double().mean(dim=0)).square().sum(dim=0) / (models - ddof)
