"""Random labels: train forget samples towards wrong classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.fields import bounded, choice
from forgetkit.losses import blocked_classes, cross_entropy
from forgetkit.method import Card, Need, Pair, Pass, State, register
from forgetkit.moving import sent
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.relabelling import drawn_classes
from forgetkit.types import Terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class RandomLabel(FullNetwork, StopsEarly):
    """Give each forget sample one wrong label, drawn once, and train on it.

        L = CE(z, y') over D_f, or CE over D_f with y' and D_r with y joined in one set;
        y' uniform over the allowed classes

    A class goal draws from the retained classes only, an instance goal from all but the sample's
    own. The draw belongs to the sample: it does not depend on the batch order.

    Source: Golatkar et al., CVPR 2020 (as a baseline); optimiser of Cha et al., AAAI 2024.

    Differences: some codes draw the true label too and draw anew each epoch; here it is excluded
        and drawn once. ``retain="mix"`` joins retained samples with their true labels;
        ``preset="mix"`` does so with the optimiser of the SSD repository, but with normalisation
        statistics frozen and a weight decay of 1e-5, unless ``bn`` and ``weight_decay`` are given.
    """

    card: ClassVar[Card] = Card(
        slug="random_label",
        title="Random labels",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="at most 10 FB over D_f",
        source="Golatkar et al. 2020, CVPR (baseline)",
        link="https://arxiv.org/abs/1911.04933",
        about="Trains the forget set towards labels drawn at random.",
        keeps=0.30,
        toy={"lr": 0.01, "batch_size": 16, "check_every": 1, "epochs": 20},
        presets={
            "mix": {
                "retain": "mix",
                "optimizer": "adam",
                "lr": 1e-4,
                "epochs": 3,
                "batch_size": 128,
            },
        },
        probe={"": {"lr": 1e-5}, "check_every": {"lr": 0.015, "epochs": 10}},
    )

    retain: str = choice("none", ("none", "mix"), "whether retained samples are trained on too")
    epochs: int = bounded(10, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(0.001, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(1e-5, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")

    @property
    def single_samples_go_on(self) -> bool:
        """Other labels are learnt over all epochs."""
        return True

    @property
    def needs(self) -> tuple[Need, ...]:
        """D_f, and D_r for the mix."""
        return ("forget", "retain") if self.retain == "mix" else ("forget",)

    def setup(self, run: Run) -> State:
        """Draw one wrong label per forget sample, (N_f,)."""
        labels = run.forget.labels
        draws = run.uniform("random_label", run.forget.positions)
        blocked = blocked_classes(labels, run.forget_classes, run.num_classes)
        wrong = drawn_classes(draws[:, None], blocked)[:, 0]
        return {"labels": torch.cat([wrong, run.retain.labels]) if self._mixes else wrong}

    @property
    def _mixes(self) -> bool:
        return self.retain == "mix"

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return one pass over D_f, or over D_f and D_r in one shuffled set."""
        joined = run.joined(run.forget, run.retain) if self._mixes else None
        return (Pass("forget", forget=joined),)

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy towards the drawn labels, of D_r its own."""
        forget = batch.forget
        if forget is None:
            raise TypeError("random_label steps over the forget set")
        wanted = sent(run.state["labels"][forget.index], forget.labels.device)
        return {"forget": cross_entropy(run.logits(forget), wanted)}
