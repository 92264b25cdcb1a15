"""NegGrad+: ascend on the forget set and descend on the retain set in one step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from forgetkit.fields import bounded
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Facts, Pair, Steps, register
from forgetkit.recipe import Ascends, FullNetwork
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class NegGradPlus(Ascends, FullNetwork):
    """Climb the loss on D_f while the loss on D_r is held down.

        L = alpha CE(z, y) over a batch of D_r - (1 - alpha) CE(z, y) over a batch of D_f

    alpha weighs batch means. An epoch reads the larger set once and the smaller one again and
    again, so a small D_f counts N_r / N_f times: alpha must come near 1 as that ratio grows.

    Source: Kurmanji, Triantafillou, Hayes, Triantafillou, "Towards Unbounded Machine Unlearning",
        NeurIPS 2023 (as a baseline), https://github.com/meghdadk/SCRUB.

    Differences: without ``retain_weight``, 1 - alpha = 0.05 min(1, 20 N_f / N_r); ascent is
        clipped and capped as in ``neggrad``; normalisation statistics are frozen, since every
        other batch comes from D_f alone. Dropout is off, so that ``retain_weight=1`` is
        ``finetune`` on networks without dropout only.
    """

    card: ClassVar[Card] = Card(
        slug="neggrad_plus",
        aliases=("neggrad+",),
        title="NegGrad+ (ascent and descent)",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="both",
        cost="10 FB over D_r, as many samples of D_f",
        source="Kurmanji et al. 2023, NeurIPS (baseline)",
        link="https://arxiv.org/abs/2302.09880",
        about="Climbs the loss on what is forgotten and descends on what is kept, step by step.",
        toy={"retain_weight": 0.7, "lr": 0.1, "epochs": 6, "batch_size": 32},
        probe={
            "": {"retain_weight": 0.7, "batch_size": 32, "max_norm": 0.1, "lr": 0.05},
            "cap": {"retain_weight": 0.1, "lr": 0.1, "epochs": 2, "batch_size": 16},
        },
        presets={
            "small": {"retain_weight": 0.95, "epochs": 10, "max_norm": None, "cap": False},
            "large": {"retain_weight": 0.9999, "epochs": 5, "max_norm": None, "cap": False},
            # CE(D_r) - CE(D_f) with rate 0.001 is half of each with twice the rate
            "equal": {
                "retain_weight": 0.5,
                "lr": 0.002,
                "epochs": 2,
                "max_norm": None,
                "cap": False,
            },
        },
    )

    retain_weight: float | None = bounded(
        None, 0.0, 1.0, "weight of D_r; alpha; None takes 1 - 0.05 min(1, 20 N_f / N_r)"
    )
    epochs: int = bounded(10, 1, 1000, "passes over the larger of D_f and D_r")
    lr: float | None = bounded(0.01, 0.0, 10.0, "step size of the optimiser")
    momentum: float = bounded(0.0, 0.0, 0.999, "momentum of SGD, first beta of Adam")
    batch_size: int | None = bounded(64, 1, 65536, "samples of each set a step")

    @property
    def steps(self) -> Steps:
        """Both sets, or D_r alone when D_f has no weight."""
        return "retain" if self.retain_weight == 1.0 else "both"

    def tuned(self, facts: Facts) -> Self:
        """Weigh D_f less, the more often it is repeated in an epoch."""
        if self.retain_weight is not None:
            return self
        ratio = facts.forget_size / max(facts.retain_size, 1)
        return dataclasses.replace(self, retain_weight=1 - 0.05 * min(1.0, 20 * ratio))

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return alpha CE on retained samples and -(1 - alpha) CE on forgotten ones."""
        if batch.retain is None or self.retain_weight is None:
            raise TypeError("neggrad_plus steps over the retain set with a known weight")
        kept = cross_entropy(run.logits(batch.retain), batch.retain.labels)
        terms = {"retain": self.retain_weight * kept}
        if batch.forget is not None:
            terms["forget"] = (1 - self.retain_weight) * self.ascent(batch.forget, run)
        return terms
