"""Fisher forgetting: noise on the weights that the retained data do not need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forgetkit.curvature import fisher_diagonal
from forgetkit.fields import bounded, choice, flag
from forgetkit.fisher_noise import noise, noise_variance
from forgetkit.method import Card, Method, register
from forgetkit.per_sample import lowest
from forgetkit.view import RowRef

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

ROW_VARIANCE = 1e-4
HEAD_CAP = 0.1


@register
@dataclass(frozen=True, kw_only=True)
class Fisher(Method):
    """Add Gaussian noise to every weight, large where the retained data do not care.

        theta = theta_0 + sqrt(v) e,  v = alpha min(1 / F, cap),  e ~ N(0, 1)
        F = mean over D_r of sum_y p_y (d -log p_y / d theta)^2

    F is the diagonal of the Fisher matrix, over the model's own labels, sample by sample, in eval
    mode. v is averaged over the inputs of each output unit (a convolution's input channels, place
    by place of the kernel), and multiplied by ``factor`` in the head and in one-dimensional
    tensors; in the head the cap is a tenth. For a class goal the head rows of the forgotten
    classes are drawn anew around 0.

    Source: Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020,
        https://arxiv.org/abs/1911.04933; the authors' notebook.

    Differences: the default is the notebook's form, which published comparisons ran; ``"paper"``
        has standard deviation (alpha / F)^(1/4) without caps, averages, factors and new rows. The
        head is the model's, not every tensor with K rows. New rows have variance 1e-4; the notebook
        sets that before its factor of the head, which makes it 1e-3. Noise on the affine part of
        batch normalisation leaves its running statistics as they are.
    """

    card: ClassVar[Card] = Card(
        slug="fisher",
        title="Fisher forgetting",
        goals=("classes", "instances"),
        needs=("retain",),
        edits="all",
        steps="none",
        cost="K FB over D_r, each sample on its own; labels='sampled': one FB",
        source="Golatkar et al. 2020, CVPR",
        link="https://arxiv.org/abs/1911.04933",
        about="Adds noise to weights, much where the retained data do not need them.",
        leaves=0.50,  # noise: more of it forgets more and keeps less
        keeps=0.50,  # published: about 40 points of retain accuracy lost
        presets={
            "paper": {
                "exponent": 0.25,
                "cap": None,
                "averaged": False,
                "factor": 1.0,
                "new_rows": False,
                "strength": 1e-9,
            },
            "code": {},
        },
        features=True,
        toy={"averaged": False, "strength": 3e-5, "cap": 1e4},
        toy_vit={"strength": 1e-5},
        probe={"retain_samples": {"retain_samples": 20}},
    )

    strength: float = bounded(1e-6, 0.0, 1.0, "how much noise, the whole trade-off; alpha")
    exponent: float = bounded(0.5, 0.0, 1.0, "power of 1/F in the standard deviation of the noise")
    cap: float | None = bounded(
        1e3, 0.0, 1e12, "largest 1/F, a tenth of it in the head; None for no limit", optional=True
    )
    averaged: bool = flag(True, "whether the inputs of an output unit share one variance")
    factor: float = bounded(
        10.0, 0.0, 1000.0, "multiplies the variance in the head and in one-dimensional tensors"
    )
    new_rows: bool = flag(
        True, "whether a class goal draws the head rows of its classes anew, variance 1e-4"
    )
    labels: str = choice(
        "expected",
        ("expected", "sampled"),
        "all labels of a retained sample by their probability, or one drawn from the model",
    )
    retain_samples: int | None = bounded(
        None, 1, 10000000, "retained samples that F is computed on, drawn once; None takes all"
    )

    def edit(self, run: Run) -> None:
        """Compute F over D_r and add the noise, in place."""
        draws = run.uniform("fisher: samples", run.retain.positions)
        retain = run.rows(run.retain, lowest(draws, self.retain_samples))
        sampled = run.uniform("fisher: labels", run.retain.positions)
        information = fisher_diagonal(
            run.functional_logits,
            run.parameters,
            retain.batches(),
            classes=run.num_classes,
            draws=sampled if self.labels == "sampled" else None,
        )
        heads = {id(parameter) for parameter in run.view.head_parameters().values()}
        rows = [row for label in self._emptied(run) for row in run.view.rows(label)]
        for name, parameter in run.parameters.items():
            mean, variance = self._moments(parameter, information[name], id(parameter) in heads)
            for row in rows:
                if row.parameter is parameter:
                    _empty(mean, variance, row)
            parameter.copy_(mean + noise(variance, run.generator))

    def _moments(self, value: Tensor, information: Tensor, in_head: bool) -> tuple[Tensor, Tensor]:
        cap = self.cap if self.cap is None or not in_head else HEAD_CAP * self.cap
        variance = noise_variance(
            information, self.strength, exponent=self.exponent, cap=cap, averaged=self.averaged
        )
        if in_head or value.ndim == 1:
            variance = variance * self.factor
        return value.detach().clone(), variance

    def _emptied(self, run: Run) -> tuple[int, ...]:
        if self.new_rows and run.forget_classes and not run.view.separable:
            run.log(
                "fisher: the head mixes its classes, so the forgotten ones have no rows of their "
                "own and get noise only"
            )
            return ()
        return run.forget_classes if self.new_rows else ()


def _empty(mean: Tensor, variance: Tensor, row: RowRef) -> None:
    index = torch.tensor(row.index, device=mean.device)
    mean.index_fill_(row.axis, index, 0.0)
    variance.index_fill_(row.axis, index, ROW_VARIANCE)
