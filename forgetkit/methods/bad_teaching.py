"""Bad Teaching: imitate an untrained teacher on what is forgotten, the original on what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.distillation import divergences
from forgetkit.fields import bounded, choice
from forgetkit.method import Card, Pair, Pass, State, register
from forgetkit.moving import sent
from forgetkit.recipe import FullNetwork
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class BadTeaching(FullNetwork):
    """Distil two teachers into the model on one shuffled set.

        L = mean KL(t(x) || softmax(z / T)) over D_f and a part of D_r
        t(x) = softmax(untrained(x) / T) on D_f, softmax(original(x) / T) on D_r

    The untrained teacher is a twin with fresh weights. What the teachers say is computed once and
    belongs to the sample, so the images should come without random augmentation.

    Source: Chundawat, Tarun, Mandal, Kankanhalli, "Can Bad Teaching Induce Forgetting?", AAAI
        2023, https://github.com/vikram2000b/bad-teaching-unlearning.

    Differences: the mean is over samples, not over samples and classes as in the code, so the
        loss is larger by the number of classes; with Adam that hardly matters.
    """

    card: ClassVar[Card] = Card(
        slug="bad_teaching",
        title="Bad Teaching",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="forget",
        cost="1 F + FB over D_f and 30 % of D_r",
        source="Chundawat et al. 2023, AAAI",
        link="https://arxiv.org/abs/2205.08096",
        about="Imitates an untrained network on the forget set and itself on the rest.",
        leaves=0.50,  # an untrained teacher can prefer the forgotten class to others
        toy={"lr": 0.002, "batch_size": 16, "epochs": 6},
        probe={
            "": {"lr": 0.001, "batch_size": 16, "max_norm": 0.1, "epochs": 1},
            "optimizer": {"weight_decay": 0.1, "epochs": 1},
        },
    )

    temperature: float = bounded(1.0, 0.1, 100.0, "divides the logits of teachers and student; T")
    retain_share: float = bounded(0.3, 0.0, 1.0, "part of D_r that is trained on, drawn at random")
    epochs: int = bounded(1, 1, 1000, "passes over D_f and the part of D_r")
    lr: float | None = bounded(1e-4, 0.0, 10.0, "step size of the optimiser")
    optimizer: str = choice("adam", ("sgd", "adam", "adamw"), "the optimiser")
    batch_size: int | None = bounded(256, 1, 65536, "samples a step, of both sets together")

    def setup(self, run: Run) -> State:
        """Draw the part of D_r, and ask both teachers once: logits (N_f + part, classes)."""
        bad = run.fresh_twin()
        untrained = [run.logits_of(bad, batch).float() for batch in run.forget.batches()]
        count = round(self.retain_share * len(run.retain))
        draws = run.uniform("bad_teaching", run.retain.positions)
        rows = draws.argsort()[:count].sort().values
        kept = [run.predictions(run.rows(run.retain, rows))] if count else []
        return {"rows": rows, "teachers": torch.cat([*untrained, *kept])}

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return one pass over D_f and the part of D_r, shuffled together."""
        kept = run.rows(run.retain, run.state["rows"])
        return (Pass("forget", name="teach", forget=run.joined(run.forget, kept)),)

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the mean divergence from each sample's own teacher."""
        both = batch.forget
        if both is None:
            raise TypeError("bad_teaching steps over both sets joined to one")
        teacher = run.state["teachers"]
        wanted = teacher[sent(both.index, teacher.device)]
        return {"forget": divergences(wanted, run.logits(both), self.temperature).mean()}
