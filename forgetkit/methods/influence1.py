"""The first-order influence update: one gradient step from old samples to new ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.fields import bounded
from forgetkit.influence import Influence, correction
from forgetkit.method import Card, register
from forgetkit.second_order import shaped

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Influence1(Influence):
    """Step from the samples as they were to the samples as they should be.

        theta = theta - tau (sum over D_f of grad l(x, new label) - grad l(x, old label))

    Deletion (all goals but relabel) has no new samples: theta + tau sum over D_f of grad l. The
    sums are sums, so tau suits a number of samples. Only the last linear layers move, because the
    method relies on a loss that is convex near the weights.

    Source: Warnecke, Pirch, Wressnegger, Rieck, "Machine Unlearning of Features and Labels", NDSS
        2023, Eq. 6, https://arxiv.org/abs/2108.11577.

    Differences: ``"code"`` repeats the step ten times, where the predictions of the moment take
        the place of the old labels from the second step on, as the authors' code does for
        corrections. Poisoned samples whose right labels are unknown are deleted.
    """

    card: ClassVar[Card] = Card(
        slug="influence1",
        title="First-order influence update",
        goals=("classes", "instances", "relabel", "depoison"),
        needs=("forget",),
        edits="all",
        steps="none",
        cost="1 FB over D_f; 2 to relabel; times repeats",
        source="Warnecke et al. 2023, NDSS, Eq. 6",
        link="https://arxiv.org/abs/2108.11577",
        about="One gradient step from the old samples to the corrected ones.",
        keeps=0.30,
        rank={"depoison": 3},
        presets={"paper": {"repeats": 1}, "code": {"repeats": 10}},
        toy={"step_size": 0.3},
        probe={"layers": {"layers": "all"}, "repeats": {"step_size": 0.01}},
    )

    step_size: float = bounded(2e-5, 0.0, 10.0, "step size for gradients summed over D_f; tau")
    repeats: int = bounded(1, 1, 1000, "how often the step is made")

    def edit(self, run: Run) -> None:
        """Make the steps, in place."""
        parameters = self.chosen(run)
        batches = list(run.forget.batches())
        old, new = run.forget.labels, run.forget.new_labels
        for step in range(self.repeats):
            if step > 0 and new is not None:
                old = run.predictions(run.forget).argmax(dim=1).cpu()
            change = correction(run.functional_logits, parameters, batches, old=old, new=new)
            for name, piece in shaped(self.step_size * change, parameters).items():
                parameters[name].sub_(piece)
