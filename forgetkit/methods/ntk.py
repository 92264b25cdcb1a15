"""NTK scrubbing: move by the difference that the linearised model makes without the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from forgetkit.curvature import fisher_diagonal
from forgetkit.fields import bounded, choice
from forgetkit.fisher_noise import noise, noise_variance
from forgetkit.kernel import (
    kernel_is_cheap,
    removal_by_kernel,
    removal_by_products,
    removal_scale,
)
from forgetkit.line_search import searched_scale
from forgetkit.method import Card, Method, register
from forgetkit.per_sample import lowest, wide_type
from forgetkit.second_order import flat, shaped
from forgetkit.types import Batch

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class NTK(Method):
    """Train the linearised model with and without the samples and move by the difference.

        w(S) = J_S^T (J_S J_S^T + n_S lambda I)^-1 (onehot(y) - softmax f(x))_S
        theta = theta_0 + s (w(D_r) - w(D))

    J is the Jacobian of the logits at the trained weights in eval mode. With the weights that
    training started from, s = 1 + 2 |c| |e| / |Delta|, where e = theta_0 - theta_init - w(D_r) and
    c = cos(Delta, e); without them s is a free number, which a search along Delta finds.

    Source: Golatkar, Achille, Soatto, "Forgetting Outside the Box", ECCV 2020,
        https://arxiv.org/abs/2003.02960; the authors' notebook for the scale.

    Differences: a subset of D_r; the kernel J J^T is summed over blocks of columns, so that J is
        never stored, and conjugate gradients, which want products with J only, take its place
        where that is much work. With the published penalty they need a thousand products or more;
        a note says how far from the solution they ended. The default penalty, far larger, was
        chosen on a ResNet and a ViT, where it forgets a class for less. The scale from the initial
        weights is the notebook's, simplified; the search, for use without them, is not published.
        ``noise`` is plain, without the larger share that ``fisher`` gives to the head and to
        one-dimensional tensors; its Fisher matrix is that of the moved weights, with one label
        drawn for each retained sample.
    """

    card: ClassVar[Card] = Card(
        slug="ntk",
        title="NTK scrubbing",
        goals=("instances", "classes"),
        needs=("forget", "retain"),
        edits="all",
        steps="none",
        cost="up to 200 products with J J^T, about 2 FB each over D_f and 1 500 samples of D_r, or "
        "2 K FB for each block of J; 26 F for the scale",
        source="Golatkar et al. 2020, ECCV",
        link="https://arxiv.org/abs/2003.02960",
        about="Moves the weights as the linearised model would move without the samples.",
        keeps=0.30,
        toy={"retain_samples": 60},
        probe={
            "penalty": {"scale": 30.0},
            "scale": {"penalty": 1.0},
            "tolerance": {"solver": "cg", "tolerance": 0.0, "scale": 30.0},
            "iterations": {"solver": "cg", "iterations": 1, "scale": 30.0},
            "retain_samples": {"retain_samples": 20, "scale": 30.0},
            "solver": {"solver": "cg", "iterations": 2, "scale": 30.0},
        },
        presets={"paper": {"penalty": 5e-4, "retain_samples": 1500}},
    )

    penalty: float = bounded(10.0, 1e-12, 1e3, "weight decay of the linearised training; lambda")
    scale: float | None = bounded(
        None,
        0.0,
        1e6,
        "multiplies the move; None computes it from the initial state dict given to "
        "`.fresh(...)`, and searches without one",
        optional=True,
    )
    retain_samples: int | None = bounded(
        1500, 1, 10000000, "retained samples to train on, drawn once; None takes all", optional=True
    )
    solver: str = choice(
        "auto",
        ("auto", "cg", "cholesky"),
        "conjugate gradients, or the kernel by Cholesky; auto takes the kernel where it is cheap",
    )
    tolerance: float = bounded(1e-3, 0.0, 1.0, "cg only: relative residual to stop at")
    iterations: int = bounded(100, 1, 100000, "cg only: largest number of products a solution")
    noise: float = bounded(0.0, 0.0, 1.0, "Fisher noise added afterwards, 0 for none; alpha")

    def edit(self, run: Run) -> None:
        """Move the weights, in place."""
        draws = run.uniform("ntk", run.retain.positions)
        kept = run.rows(run.retain, lowest(draws, self.retain_samples))
        forget, retain = list(run.forget.batches()), list(kept.batches())
        residuals = self._residuals(run, forget), self._residuals(run, retain)
        delta, weights = self._removal(run, forget, retain, residuals)
        move = shaped(delta, run.parameters)
        if self.scale is not None:
            scale = self.scale
        elif run.starts_known:
            scale = self._published_scale(run, delta, weights)
        else:
            scale = searched_scale(run, move, kept)
        for name, piece in move.items():
            run.parameters[name].add_(scale * piece)
        if self.noise > 0.0:
            self._blur(run, retain, run.uniform("ntk: noise", run.retain.positions))

    def _residuals(self, run: Run, batches: Sequence[Batch]) -> Tensor:
        """Return target minus prediction, (samples, classes)."""
        rows = []
        for batch in batches:
            logits = run.logits(batch)
            probs = logits.to(wide_type(logits.device)).softmax(dim=1)
            rows.append(one_hot(batch.labels.to(probs.device), run.num_classes) - probs)
        return torch.cat(rows)

    def _removal(
        self,
        run: Run,
        forget: list[Batch],
        retain: list[Batch],
        residuals: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return w(D_r) - w(D) and w(D_r), (P,) each."""
        model = (run.functional_logits, run.parameters)
        rows = sum(part.numel() for part in residuals)
        solver = self.solver
        if solver == "auto":
            solver = "cholesky" if kernel_is_cheap(run.parameters, rows) else "cg"
            run.log(f"ntk: solver={solver!r} for {rows} rows (samples times classes)")
        if solver == "cholesky":
            return removal_by_kernel(*model, forget, retain, residuals, penalty=self.penalty)
        delta, weights, solutions = removal_by_products(
            *model,
            forget,
            retain,
            residuals,
            penalty=self.penalty,
            tolerance=self.tolerance,
            iterations=self.iterations,
        )
        run.log(f"ntk: D_r alone {solutions[0]}; D {solutions[1]}")
        if not all(solution.converged for solution in solutions):
            run.log(
                "ntk: the move is not that of the linearised model, because conjugate gradients "
                "ended before they had solved for it; raise penalty or iterations, or lower "
                "retain_samples until solver='cholesky' can be used"
            )
        return delta, weights

    def _published_scale(self, run: Run, delta: Tensor, weights: Tensor) -> float:
        initial = dict(run.fresh_twin().named_parameters())
        moved = {name: p.detach() - initial[name].to(p) for name, p in run.parameters.items()}
        scale = removal_scale(delta, flat(moved).to(weights) - weights)
        run.log(f"ntk: the way from the initial weights gives a scale of {scale:.3g}")
        return scale

    def _blur(self, run: Run, retain: list[Batch], draws: Tensor) -> None:
        information = fisher_diagonal(
            run.functional_logits, run.parameters, retain, classes=run.num_classes, draws=draws
        )
        for name, parameter in run.parameters.items():
            variance = noise_variance(information[name], self.noise, cap=1e3, averaged=True)
            parameter.add_(noise(variance, run.generator))
