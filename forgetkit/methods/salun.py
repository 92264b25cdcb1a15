"""SalUn: random labels for the weights that the forget set points to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.fields import bounded
from forgetkit.losses import blocked_classes, cross_entropy
from forgetkit.method import Card, Pair, Pass, State, register
from forgetkit.moving import sent
from forgetkit.recipe import FullNetwork
from forgetkit.relabelling import drawn_classes
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class SalUn(FullNetwork):
    """Train D_f towards wrong labels and D_r towards its own, moving the salient weights only.

        m_j = 1 for the largest |sum over D_f of d CE(z, y) / d theta_j|, a share ``mask`` of all
        L = CE(z, y') over D_f, then CE(z, y) over D_r;  theta <- theta_0 where m = 0

    Every epoch is one pass over D_f and one over D_r. Each wrong label is drawn once, uniformly
    over the allowed classes: the retained ones for a class goal, all but the sample's own for
    single samples. Every trained method takes ``mask``; this is the authors' choice of host.

    Source: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-Based Weight Saliency",
        ICLR 2024, arXiv:2310.12508, Eq. 3-5; https://github.com/OPTML-Group/Unlearn-Saliency.

    Differences: weights outside the mask keep their bits: until February 2026 weight decay and
        momentum moved them in the authors' code. There the random labels are drawn anew each epoch
        and can be the true ones; here neither. Normalisation statistics are frozen (train mode
        there): one of the two passes of an epoch sees D_f alone.
    """

    card: ClassVar[Card] = Card(
        slug="salun",
        title="SalUn (saliency unlearning)",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="both",
        cost="1 FB over D_f for the mask, 10 FB over D_f and D_r",
        source="Fan et al. 2024, ICLR",
        link="https://arxiv.org/abs/2310.12508",
        about="Random labels for the forget set, with only the salient weights free to move.",
        toy={"epochs": 4, "lr": 0.03, "batch_size": 32},
        probe={"max_norm": {"lr": 0.05}},
    )

    epochs: int = bounded(10, 1, 1000, "passes over D_f and D_r")
    lr: float | None = bounded(0.013, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(256, 1, 65536, "samples a step")
    mask: float | None = bounded(
        0.5, 0.0, 1.0, "share of the weights that may move; None lets all move", optional=True
    )

    def setup(self, run: Run) -> State:
        """Draw one wrong label per forget sample, (N_f,)."""
        draws = run.uniform("random_label", run.forget.positions)
        blocked = blocked_classes(run.forget.labels, run.forget_classes, run.num_classes)
        return {"labels": drawn_classes(draws[:, None], blocked)[:, 0]}

    def passes(self, run: Run) -> Sequence[Pass]:  # noqa: ARG002  the same in every epoch
        """Return a pass over D_f, then one over D_r."""
        return (Pass("forget", name="forget"), Pass("retain", name="retain"))

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy to the drawn labels, or on retained samples to their own."""
        if batch.forget is not None:
            wrong = sent(run.state["labels"][batch.forget.index], batch.forget.labels.device)
            return {"forget": cross_entropy(run.logits(batch.forget), wrong)}
        if batch.retain is None:
            raise TypeError("salun steps over the forget set, then over the retain set")
        return {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}
