"""Linear filtration of a classification head, and its plain mask."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from forgetkit.errors import DataError, ModelError
from forgetkit.fields import bounded, choice
from forgetkit.head_tail import bias_gains, same_for_every_class, uneven_step
from forgetkit.method import Card, Method, Need, register
from forgetkit.types import SampleSet
from forgetkit.view import Affine

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


def _derived(affine: Affine) -> str:
    """Say that a weight is made of others at each call and cannot be written."""
    sources = [name for name in affine.parameters if not name.endswith("bias")]
    return (
        f"linear_filtration: expected a head whose weight is a parameter, found {affine.name} to "
        f"make its own from {', '.join(sources) or 'other tensors'}; fold that in first "
        "(torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
        "remove_spectral_norm or prune.remove, merge_and_unload() of PEFT), or use a trained method"
    )


def _how_to_give_a_bias(run: Run) -> str:
    if len(run.view.affines) > 1:
        return "merge the layers that the head adds up into one (merge_and_unload() of PEFT)"
    return "rebuild the head with a bias"


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
        affines = [self._checked(affine, run) for affine in run.view.affines]
        if run.view.tail:
            self._check_tail(affines, run)
        noise = self._noise(run)
        means = torch.eye(run.num_classes, dtype=torch.float64)
        if self.form != "naive":
            means = self._mean_logits(run)
        matrix = filtration_matrix(means, run.forget_classes, self.form, noise)
        for weight, bias, axis in affines:
            self._filter(weight, bias, axis, matrix, run.forget_classes)

    def _checked(self, affine: Affine, run: Run) -> tuple[Tensor, Tensor, int]:
        weight, bias = affine.weight, affine.bias
        if weight is None and run.view.linear:
            raise ModelError(_derived(affine))
        rows = None if weight is None else weight.shape[affine.class_axis]
        if weight is None or rows != run.num_classes or not run.view.linear:
            raise ModelError(
                f"linear_filtration: expected an affine head with one row for each of "
                f"{run.num_classes} classes, found {affine.name} with {rows} rows"
                f"{'' if run.view.linear else ' and a non-linear end'}; use a trained method"
            )
        if bias is None:
            raise ModelError(
                f"linear_filtration: expected a head with a bias to mask the class with, found "
                f"none at {affine.name}; use lau, or {_how_to_give_a_bias(run)}"
            )
        free = {id(parameter) for parameter in run.parameters.values()}
        for name, tensor in (("weight", weight), ("bias", bias)):
            if id(tensor) not in free:
                found = "frozen" if isinstance(tensor, nn.Parameter) else "which is no parameter"
                raise ModelError(
                    "linear_filtration: expected a weight and a bias that may change, found the "
                    f"{name} of {affine.name} {found}; make it a parameter with "
                    "requires_grad_(True), or use a trained method such as lau"
                )
        return weight, bias, affine.class_axis

    def _check_tail(self, affines: list[tuple[Tensor, Tensor, int]], run: Run) -> None:
        """Refuse a head whose logits are not what its affine layers add up, but for a factor.

        The naive form only masks: there it is enough that the bias of a class moves its logit.
        """
        weights, biases = [one[0] for one in affines], [one[1] for one in affines]
        zeros = weights[0].new_zeros((1, *run.view.feature_shape))
        naive = self.form == "naive"
        step = uneven_step(run.num_classes)
        if naive:
            step = torch.isin(torch.arange(run.num_classes), torch.tensor(run.forget_classes))
        rest, gains = bias_gains(lambda: run.head(zeros)[0], weights, biases, step)
        if naive:
            masked = step.to(rest.device)
            fits = all(float(one[masked].min()) > float(one[~masked].max()) for one in gains)
        else:
            fits = same_for_every_class(rest, gains, step)
        if not fits:
            wanted = (
                "a bias to raise the logit of its class"
                if naive
                else "logits that are what the last layer adds up, or one positive multiple of it"
            )
            raise ModelError(
                f"linear_filtration: expected {wanted}, found that what comes behind "
                f"{run.view.head_name} ({', '.join(run.view.tail)}) changes them by class; fold it "
                "into the layer's weight and bias, or use a trained method such as lau"
            )

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

    def _filter(
        self, weight: Tensor, bias: Tensor, axis: int, matrix: Tensor, forgotten: tuple[int, ...]
    ) -> None:
        rows = weight.movedim(axis, 0)
        flat = rows.reshape(len(rows), -1)
        retained = [label for label in range(len(rows)) if label not in forgotten]
        new_weight, new_bias = torch.zeros_like(flat), torch.zeros_like(bias)
        if self.form == "naive":  # exact: a product with the identity could round
            new_weight[retained], new_bias[retained] = flat[retained], bias[retained]
        else:
            new_weight[retained] = (matrix @ flat.cpu().double()).to(weight)
            new_bias[retained] = (matrix @ bias.cpu().double()).to(bias)
        lowest = float(new_bias[retained].min()) - MASK_BELOW
        new_bias[list(forgotten)] = max(lowest, LOWEST_BIAS)
        rows.copy_(new_weight.view_as(rows))
        bias.copy_(new_bias)
