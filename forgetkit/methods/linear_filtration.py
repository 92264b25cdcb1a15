"""Linear filtration of a classification head, and its plain mask."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from forgetkit.errors import DataError
from forgetkit.fields import bounded, choice
from forgetkit.head_rows import HeadRows, reject_uneven_tail, writable_rows
from forgetkit.method import Card, Method, Need, register
from forgetkit.types import SampleSet

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

logger = logging.getLogger("forgetkit")

WORST_CONDITION = 1e6
MASK_BELOW = 1e4
LOWEST_BIAS = -6e4
"""Float16 ends at -65504; the masked bias must survive every type."""


def filtration_matrix(
    means: Tensor, forgotten: tuple[int, ...], form: str, noise: Tensor
) -> Tensor:
    """Return F, (retained classes, classes), with F @ means[:, j] = the wanted mean logits.

    As only the columns of forgotten classes change, F = B A^-1 is the retained rows of the identity
    plus that change times the rows of A^-1 for the forgotten classes.

    Args:
        means: (classes, classes) float64, column j = mean logits over samples of class j.
        forgotten: the classes to filter out.
        form: ``"normalization"``, ``"zeroing"``, ``"randomization"`` or ``"naive"``.
        noise: (retained classes, forgotten classes) standard normal draws for randomization.
    """
    classes = len(means)
    retained = [label for label in range(classes) if label not in forgotten]
    if form == "naive":
        return torch.eye(classes, dtype=means.dtype)[retained]
    lost = list(forgotten)
    column = means[retained][:, lost]
    if form == "normalization":
        wanted = column - column.mean(dim=0) + means[retained][:, retained].mean()
    else:
        wanted = torch.zeros_like(column) if form == "zeroing" else noise.to(means.dtype)
    condition = float(torch.linalg.cond(means))
    if condition <= WORST_CONDITION:
        aim = torch.eye(classes, dtype=means.dtype)[:, lost]
        shares: Tensor = torch.linalg.solve(means.T, aim).T
    else:  # of zeros alone the condition is no number
        logger.warning(
            "linear_filtration: the mean logits are nearly dependent (condition number %.1e); "
            "using the pseudo-inverse, so retained means are kept only approximately",
            condition,
        )
        # what lies below is the rounding of float32 logits, and its inverse would be huge
        shares = torch.linalg.pinv(means, rtol=1 / WORST_CONDITION)[lost]
    return torch.eye(classes, dtype=means.dtype)[retained] + (wanted - column) @ shares


@register
@dataclass(frozen=True, kw_only=True)
class LinearFiltration(Method):
    """Multiply the head by a matrix that sends the mean logits of a class elsewhere.

        W_r = F W,  b_r = F b,  F = B A^-1

    A (K x K): column j = mean logits of class j. B: A without the rows of the forgotten classes,
    the columns of the forgotten classes replaced as ``form`` says. The rows of forgotten classes
    become zero with a bias so low that softmax gives them exactly 0: their accuracy is 0 by
    construction. ``form="naive"`` leaves the retained rows alone: it masks the class, at no cost,
    and is the yardstick for every class method. The features are untouched, so a probe recovers
    the class.

    Source: Baumhauer, Schöttle, Zeppelzauer, "Machine Unlearning: Linear Filtration for
        Logit-based Classifiers", Machine Learning 2022, https://arxiv.org/abs/2002.02730.

    Differences: the head keeps K outputs. Nearly dependent means (always so with more classes than
        features + 1) use a pseudo-inverse, which takes singular values below 1e-6 of the largest
        for 0; F leaves alone what such means do not reach. Heads that shift or scale their sums by
        class, where F W and F b would not make F z, are refused.
    """

    card: ClassVar[Card] = Card(
        slug="linear_filtration",
        title="Linear filtration",
        goals=("classes",),
        needs=("forget", "retain"),
        edits="head",
        steps="none",
        cost="1 F over 100 samples a class; naive: none",
        source="Baumhauer et al. 2022, Machine Learning",
        link="https://arxiv.org/abs/2002.02730",
        about="Sends the mean logits of the class elsewhere by one matrix on the head.",
        masks_head=True,
        probe={"": {"samples_per_class": 20}},
    )

    form: str = choice(
        "normalization",
        ("normalization", "zeroing", "randomization", "naive"),
        "where the mean logits of a forgotten class go; naive only masks it",
    )
    samples_per_class: int = bounded(100, 1, 100000, "samples a class for the mean logits")

    @property
    def needs(self) -> tuple[Need, ...]:
        """The naive form reads no retained samples."""
        return ("forget",) if self.form == "naive" else ("forget", "retain")

    def edit(self, run: Run) -> None:
        """Write F W and F b into the retained rows, mask the others.

        Raises:
            ModelError: the head has no bias, is not affine with one row a class, is partly frozen,
                or shifts or scales the logits by class.
            DataError: a class has no samples.
        """
        layers = writable_rows(run, self.card.slug)
        reject_uneven_tail(run, layers, self.card.slug, masks_only=self.form == "naive")
        noise = self._noise(run)
        means = torch.eye(run.num_classes, dtype=torch.float64)
        if self.form != "naive":
            means = self._mean_logits(run)
        matrix = filtration_matrix(means, run.forget_classes, self.form, noise)
        for rows in layers:
            self._filter(rows, matrix, run.forget_classes)

    def _noise(self, run: Run) -> Tensor:
        retained = run.num_classes - len(run.forget_classes)
        shape = (retained, len(run.forget_classes))
        return torch.randn(shape, generator=run.generator, dtype=torch.float64)

    def _mean_logits(self, run: Run) -> Tensor:
        sums = torch.zeros(run.num_classes, run.num_classes, dtype=torch.float64)
        count = torch.zeros(run.num_classes, dtype=torch.float64)
        for samples in (run.images.forget, run.images.retain):
            if samples is None:
                continue
            for batch in run.working(samples.take(self._few(samples, run.num_classes))).batches():
                logits = run.logits(batch).cpu().double()
                labels = batch.labels.cpu()
                sums.index_add_(0, labels, logits)
                count.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
        if bool((count == 0).any()):
            missing = (count == 0).nonzero()[:, 0].tolist()
            raise DataError(
                f"linear_filtration: expected samples of every class, found none of {missing}; "
                "pass them with `.retain(loader)`, or use form='naive'"
            )
        return rearrange(sums / count[:, None], "true logit -> logit true")

    def _few(self, samples: SampleSet, num_classes: int) -> Tensor:
        """Return rows with at most ``samples_per_class`` of each class, lowest positions first."""
        rows = []
        for label in range(num_classes):
            own = (samples.labels == label).nonzero()[:, 0]
            order = samples.positions[own].argsort()
            rows.append(own[order][: self.samples_per_class])
        return torch.cat(rows)

    def _filter(self, rows: HeadRows, matrix: Tensor, forgotten: tuple[int, ...]) -> None:
        flat, bias = rows.flat, rows.bias
        retained = [label for label in range(len(flat)) if label not in forgotten]
        new_weight, new_bias = torch.zeros_like(flat), torch.zeros_like(bias)
        if self.form == "naive":  # exact: a product with the identity could round
            new_weight[retained], new_bias[retained] = flat[retained], bias[retained]
        else:
            new_weight[retained] = (matrix @ flat.cpu().double()).to(flat)
            new_bias[retained] = (matrix @ bias.cpu().double()).to(bias)
        lowest = float(new_bias[retained].min()) - MASK_BELOW
        new_bias[list(forgotten)] = max(lowest, LOWEST_BIAS)
        rows.write(new_weight, new_bias)
