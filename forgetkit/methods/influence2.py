"""The second-order influence update: a Newton step from old samples to new ones."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from forgetkit.fields import bounded, choice
from forgetkit.influence import Influence, correction
from forgetkit.method import Card, register
from forgetkit.per_sample import lowest, wide_type
from forgetkit.second_order import gauss_newton_product, hessian_product, shaped
from forgetkit.solvers import Product, Solution, conjugate_gradient, lissa
from forgetkit.types import Batch

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


logger = logging.getLogger("forgetkit")


@register
@dataclass(frozen=True, kw_only=True)
class Influence2(Influence):
    """Make the Newton step that the exchange of samples calls for.

        theta = theta - (H + damping I)^-1 v,
        v = sum over D_f of grad l(x, new label) - grad l(x, old label)

    H is the second derivative of the loss summed over the samples that stay: D_r, and D_f with its
    new labels when there are any. Deletion (all goals but relabel) has no new samples.

    Source: Warnecke, Pirch, Wressnegger, Rieck, "Machine Unlearning of Features and Labels", NDSS
        2023, Eq. 10, https://arxiv.org/abs/2108.11577.

    Differences: the Gauss-Newton matrix by default, which has no negative eigenvalues, and
        conjugate gradients instead of LiSSA. The authors' d = 1e-4 and s = 2e5 mean a damping of
        d s = 20, which is the default. H comes from ``hessian_samples`` of D_r, scaled to all.
    """

    card: ClassVar[Card] = Card(
        slug="influence2",
        title="Second-order influence update",
        goals=("classes", "instances", "relabel", "depoison"),
        needs=("forget", "retain"),
        edits="all",
        steps="none",
        cost="1-2 FB over D_f, and up to 100 products of about 2 FB over 1 024 samples",
        source="Warnecke et al. 2023, NDSS, Eq. 10",
        link="https://arxiv.org/abs/2108.11577",
        about="A Newton step from the old samples to the corrected ones.",
        keeps=0.30,
        toy={"damping": 2.0, "iterations": 30},
        probe={
            "": {"damping": 2.0, "iterations": 3, "hessian_samples": 20},
            "layers": {"layers": "all", "damping": 20.0, "iterations": 3, "hessian_samples": 20},
            "curvature": {
                "layers": "all",
                "damping": 1e5,
                "iterations": 3,
                "hessian_samples": 20,
            },
            "scale": {"solver": "lissa", "iterations": 3, "hessian_samples": 20},
            "tolerance": {"tolerance": 0.0, "iterations": 10, "hessian_samples": 20},
        },
        presets={"code": {"solver": "lissa", "curvature": "hessian", "iterations": 10000}},
    )

    curvature: str = choice(
        "ggn", ("ggn", "hessian"), "second derivative: Gauss-Newton matrix or the true Hessian"
    )
    solver: str = choice("cg", ("cg", "lissa"), "conjugate gradients or LiSSA")
    damping: float = bounded(20.0, 0.0, 1e9, "added to the diagonal of the summed H; d s of LiSSA")
    scale: float = bounded(2e5, 1e-6, 1e12, "LiSSA only: at least half the top eigenvalue of H; s")
    tolerance: float = bounded(
        1e-4, 0.0, 1.0, "stop: relative residual (cg) or last change (lissa)"
    )
    iterations: int | None = bounded(
        None, 1, 1000000, "largest number of products with H; None: 100, with LiSSA 10000"
    )
    hessian_samples: int | None = bounded(
        1024, 1, 10000000, "retained samples that H is computed on; None takes all", optional=True
    )

    def edit(self, run: Run) -> None:
        """Solve for the step and make it, in place."""
        parameters = self.chosen(run)
        forget = list(run.forget.batches())
        old, new = run.forget.labels, run.forget.new_labels
        change = correction(run.functional_logits, parameters, forget, old=old, new=new)
        found = self._solved(
            self._product(run, parameters, forget, new), change.to(wide_type(change.device))
        )
        run.log(f"influence2: {self.solver} {found}")
        if not found.converged:
            logger.warning(
                "influence2: %s %s, so the step is not the whole one; allow more iterations, raise "
                "damping, or use solver='cg'",
                self.solver,
                found,
            )
        for name, piece in shaped(found.value, parameters).items():
            parameters[name].sub_(piece)

    def _product(
        self,
        run: Run,
        parameters: dict[str, nn.Parameter],
        forget: list[Batch],
        new: Tensor | None,
    ) -> Product:
        draws = run.uniform("influence2", run.retain.positions)
        rows = lowest(draws, self.hessian_samples)
        retain = list(run.rows(run.retain, rows).batches())
        share = len(run.retain) / len(rows)
        corrected = [] if new is None else [_relabelled(batch, new) for batch in forget]
        multiply = gauss_newton_product if self.curvature == "ggn" else hessian_product

        def product(vector: Tensor) -> Tensor:
            kept = multiply(run.functional_logits, parameters, retain, vector)
            return share * kept + multiply(run.functional_logits, parameters, corrected, vector)

        return product

    def _solved(self, product: Product, right: Tensor) -> Solution:
        if self.solver == "cg":
            return conjugate_gradient(
                product,
                right,
                damping=self.damping,
                tolerance=self.tolerance,
                iterations=self.iterations or 100,
            )
        return lissa(
            product,
            right,
            decay=self.damping / self.scale,
            scale=self.scale,
            tolerance=self.tolerance,
            iterations=self.iterations or 10000,
        )


def _relabelled(batch: Batch, labels: Tensor) -> Batch:
    return dataclasses.replace(batch, labels=labels[batch.index.cpu()])
