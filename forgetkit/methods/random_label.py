"""Random labels: train forget samples towards wrong classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from forgetkit.fields import bounded, choice
from forgetkit.losses import blocked_classes, cross_entropy
from forgetkit.method import Card, Need, Pair, State, Steps, register
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


def wrong_labels(draws: Tensor, blocked: Tensor) -> Tensor:
    """Return one allowed class per sample, uniformly.

    Args:
        draws: (samples,) uniform numbers in [0, 1).
        blocked: (samples, classes) boolean; classes that must not be drawn.
    """
    allowed = ~blocked
    rank = (draws * allowed.sum(dim=1)).long()
    order = allowed.long().cumsum(dim=1) - 1
    return ((order == rank[:, None]) & allowed).long().argmax(dim=1)


@register
@dataclass(frozen=True, kw_only=True)
class RandomLabel(FullNetwork, StopsEarly):
    """Give each forget sample one wrong label, drawn once, and train on it.

        L = CE(z, y') over D_f [+ CE(z, y) over D_r],  y' uniform over the allowed classes

    A class goal draws from the retained classes only, an instance goal from all but the sample's
    own. The draw belongs to the sample: it does not depend on the batch order.

    Source: Golatkar et al., CVPR 2020 (as a baseline); optimiser of Cha et al., AAAI 2024.

    Differences: some codes draw the true label too and draw anew each epoch; here it is excluded
        and drawn once. ``retain="mix"`` adds retained samples with their true labels.
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
        probe={"": {"lr": 1e-5}, "check_every": {"lr": 0.015, "epochs": 10}},
    )

    retain: str = choice("none", ("none", "mix"), "whether retained samples are trained on too")
    epochs: int = bounded(10, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(0.001, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(1e-5, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")

    @property
    def needs(self) -> tuple[Need, ...]:
        """D_f, and D_r for the mix."""
        return ("forget", "retain") if self.retain == "mix" else ("forget",)

    @property
    def steps(self) -> Steps:
        """D_f drives the epoch; with the mix both sets do."""
        return "both" if self.retain == "mix" else "forget"

    def setup(self, run: Run) -> State:
        """Draw one wrong label per forget sample, (N_f,)."""
        labels = run.forget.labels
        draws = run.uniform("random_label", run.forget.positions)
        blocked = blocked_classes(labels, run.forget_classes, run.num_classes)
        return {"labels": wrong_labels(draws, blocked)}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy towards the drawn labels, and on retained samples if mixed."""
        forget = batch.forget
        if forget is None:
            raise TypeError("random_label steps over the forget set")
        wrong = run.state["labels"][forget.index].to(forget.labels.device)
        terms = {"forget": cross_entropy(run.logits(forget), wrong)}
        if batch.retain is not None:
            terms["retain"] = cross_entropy(run.logits(batch.retain), batch.retain.labels)
        return terms
