"""Initial labels: train forget samples towards what an untrained network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forgetkit.fields import bounded
from forgetkit.losses import blocked_classes, cross_entropy
from forgetkit.method import Card, Pair, State, register
from forgetkit.moving import sent
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


def initial_labels(untrained: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the untrained network's label per sample, and where its first choice was blocked.

    Args:
        untrained: (samples, classes) logits of the untrained network.
        blocked: (samples, classes) boolean; classes that must not be targets.
    """
    allowed = untrained.masked_fill(blocked, -torch.inf).argmax(dim=1)
    return allowed, allowed != untrained.argmax(dim=1)


@register
@dataclass(frozen=True, kw_only=True)
class InitialLabel(FullNetwork, StopsEarly):
    """Give each forget sample the label of an untrained twin of the model, and train on it.

        L = CE(z, y') over D_f,  y' = argmax over the allowed classes of the twin's logits

    A class goal allows the retained classes only, an instance goal all but the sample's own. An
    untrained network predicts one or two classes for every input, so all of D_f is pushed into
    few classes; the history tells how many (``distinct_labels``), and for how many samples the
    first choice was not allowed (``blocked_labels``).

    Source: Lyu et al., "Fine-Grained and Efficient Self-Unlearning with Layered Iteration" (as a
        baseline); optimiser of Cha et al., "Learning to Unlearn", AAAI 2024,
        https://arxiv.org/abs/2301.11578.

    Differences: a first choice that is forgotten or the sample's own gives way to the next best.
    """

    card: ClassVar[Card] = Card(
        slug="initial_label",
        title="Initial labels",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="1 F and at most 10 FB over D_f",
        source="Lyu et al. (baseline)",
        link="https://arxiv.org/abs/2301.11578",
        about="Trains the forget set towards the predictions of an untrained network.",
        keeps=0.40,
        toy={"lr": 0.01, "batch_size": 16, "check_every": 1, "epochs": 20},
        probe={"": {"lr": 1e-5}, "check_every": {"lr": 0.02, "epochs": 10}},
    )

    epochs: int = bounded(10, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(0.001, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(1e-5, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")

    @property
    def single_samples_go_on(self) -> bool:
        """Other labels are learnt over all epochs."""
        return True

    def setup(self, run: Run) -> State:
        """Ask the untrained twin once for one label per forget sample, (N_f,)."""
        twin = run.fresh_twin()
        untrained = torch.cat(
            [run.logits_of(twin, batch).float() for batch in run.forget.batches()]
        ).cpu()
        blocked = blocked_classes(run.forget.labels, run.forget_classes, run.num_classes)
        labels, gave_way = initial_labels(untrained, blocked)
        run.count("blocked_labels", int(gave_way.sum()))
        run.count("distinct_labels", len(labels.unique()))
        return {"labels": labels}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy towards the untrained network's labels."""
        forget = batch.forget
        if forget is None:
            raise TypeError("initial_label steps over the forget set")
        wanted = sent(run.state["labels"][forget.index], forget.labels.device)
        return {"forget": cross_entropy(run.logits(forget), wanted)}
