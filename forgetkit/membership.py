"""How well the losses of forgotten samples give away that they were trained on. Pure functions."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from forgetkit.data.randomness import random_state_kept
from forgetkit.errors import DataError

FEWEST = 10
"""Losses that each group must have: a tenth of both is held out, stratified."""


def forgetting_score(forget_losses: Tensor, unseen_losses: Tensor, *, seed: int = 0) -> float:
    """Return FS = |M - 0.5|, where M is how often an attack tells the two groups apart.

    The attack is a logistic regression on the loss alone; M is its accuracy on a stratified tenth
    of both groups, mean over ten random splits. 0 is best, 0.5 worst. A destroyed model also has
    FS near 0: read it with the accuracy, or use ``final_score``.

    Args:
        forget_losses: (samples,) one loss per forgotten sample.
        unseen_losses: (samples,) the same for samples that were never trained on.
        seed: of the shuffle before the larger group is cut to the size of the smaller one.

    Raises:
        DataError: a group has fewer than 10 losses, or one is not finite.

    Source: Guided Loss-Increasing (supplement) and its notebooks; splits of the code.

    Differences: where there are fewer forgotten than unseen samples, the unseen ones are cut too.
        Otherwise always answering with the larger group would count as knowledge.
    """
    with random_state_kept():  # scikit-learn draws when it is imported first
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    forget, unseen = _checked(forget_losses, "forget"), _checked(unseen_losses, "unseen")
    size = min(len(forget), len(unseen))
    generator = Generator().manual_seed(seed)
    groups = [
        losses[torch.randperm(len(losses), generator=generator)[:size]]
        for losses in (forget, unseen)
    ]
    member = torch.tensor([1, 0]).repeat_interleave(size)
    splits = StratifiedShuffleSplit(n_splits=10, test_size=0.1, random_state=0)
    shares = cross_val_score(
        LogisticRegression(), torch.cat(groups)[:, None].numpy(), member.numpy(), cv=splits
    )
    return abs(float(shares.mean()) - 0.5)


def final_score(accuracy: float, score: float) -> float:
    """Return (accuracy + 1 - 2 FS) / 2, in [0, 1], higher is better.

    Args:
        accuracy: on samples that were never trained on, as a fraction: top-1, or the mean over
            labels of the accuracy at the threshold 0.5.
        score: the forgetting score FS, in [0, 0.5].

    Source: Guided Loss-Increasing (supplement); equal to NoMUS at lambda = 0.5.
    """
    return (accuracy + 1.0 - 2.0 * score) / 2.0


def jensen_shannon_distance(left: Tensor, right: Tensor, *, points: int = 1000) -> float:
    """Return the Jensen-Shannon distance between the densities of two samples of losses.

    The densities are Gaussian kernel estimates with Scott's bandwidth, read on a grid over the
    joint range. The distance is the square root of the divergence in nats: 0 for equal densities,
    at most sqrt(log 2).

    Args:
        left: (samples,) losses, at least 10.
        right: (samples,) losses, at least 10.
        points: of the grid.

    Raises:
        DataError: a sample has fewer than 10 losses, or one is not finite.

    Source: Guided Loss-Increasing (supplement).

    Differences: a sample without spread has no bandwidth; it never falls below one grid step.
    """
    left, right = _checked(left, "left"), _checked(right, "right")
    both = torch.cat([left, right])
    low, high = both.min(), both.max()
    if high == low:
        return 0.0
    grid = torch.linspace(float(low), float(high), points, dtype=torch.float64)
    p, q = _density(left, grid), _density(right, grid)
    middle = (p + q) / 2
    divergence = (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).nansum() / 2
    return float(divergence.clamp(min=0.0).sqrt())


def _density(sample: Tensor, grid: Tensor) -> Tensor:
    """Return a Gaussian kernel estimate on the grid, scaled to sum to 1."""
    step = grid[1] - grid[0]
    bandwidth = torch.maximum(sample.std() * len(sample) ** -0.2, step)
    total = torch.zeros_like(grid)
    for part in sample.split(4096):  # points x samples at once would be large
        total += torch.exp(-0.5 * ((grid[:, None] - part) / bandwidth).square()).sum(dim=1)
    return total / total.sum()


def _checked(losses: Tensor, name: str) -> Tensor:
    found = losses.detach().flatten().double().cpu()
    if len(found) < FEWEST or not bool(torch.isfinite(found).all()):
        what = f"{len(found)}" if len(found) < FEWEST else "NaN or infinity among them"
        raise DataError(
            f"{name} losses: expected at least {FEWEST} finite numbers, found {what}; measure more "
            "samples, and check the model's weights when a loss is not finite"
        )
    return found
