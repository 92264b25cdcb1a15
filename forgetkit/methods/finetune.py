"""Fine-tuning on what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.fields import bounded, choice
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Pair, State, register
from forgetkit.recipe import FullNetwork
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class FineTune(FullNetwork):
    """Continue training on D_r and let what was forgotten fade.

        L = CE(z, y) over D_r + (anchor / 2) sum (theta - theta_0)^2

    Forgetting is slow: a class fades only because it is never a target again. A table in which
    fine-tuning looks useless should say which ``lr`` was used; 0.001 forgets next to nothing.

    Source: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020 (as a baseline),
        https://github.com/AdityaGolatkar/SelectiveForgetting.

    Differences: the pull to the starting weights (``anchor``) is off unless asked for.
    """

    card: ClassVar[Card] = Card(
        slug="finetune",
        title="Fine-tuning",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="retain",
        cost="10 FB over D_r",
        source="Golatkar et al. 2020, CVPR (baseline)",
        link="https://arxiv.org/abs/1911.04933",
        about="Continues training on what is kept until the rest fades.",
        dropout=True,
        multilabel=True,
        rank={"instances": 4},
        toy={"lr": 0.1, "epochs": 40},
        toy_vit={"lr": 0.2},
    )

    anchor: float = bounded(0.0, 0.0, 1e6, "pull to the starting weights; lambda")
    epochs: int = bounded(10, 1, 1000, "passes over D_r")
    lr: float | None = bounded(0.01, 0.0, 10.0, "step size of the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")
    bn: str = choice("train", ("frozen", "train"), "D_r is what the statistics should describe")

    def setup(self, run: Run) -> State:
        """Keep the starting weights when the anchor needs them."""
        if self.anchor == 0.0:
            return {}
        return {name: p.detach().clone() for name, p in run.parameters.items()}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on retained samples, and the pull."""
        if batch.retain is None:
            raise TypeError("finetune steps over the retain set")
        terms = {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}
        if self.anchor > 0.0:
            moved = [(p - run.state[name]).square().sum() for name, p in run.parameters.items()]
            terms["retain_anchor"] = self.anchor / 2 * torch.stack(moved).sum()
        return terms
