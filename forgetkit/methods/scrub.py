"""SCRUB: leave the teacher on the forget set, stay with it on the retain set; with rewinding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from forgetkit.distillation import bounded_departure, distillation
from forgetkit.fields import bounded, choice, flag
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Facts, GoalKind, Pair, Pass, Settings, State, register
from forgetkit.recipe import FullNetwork
from forgetkit.rewinding import remember, rewind, unseen_like_forgotten
from forgetkit.types import SampleSet, Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

_INSTANCES: Settings = {
    "label_weight": 1.0, "distill_weight": 0.5, "max_epochs": 3, "epochs": 5,
    "temperature": 4.0, "forget_batch_size": 16, "batch_size": 32,
}  # fmt: skip
_PUBLISHED: dict[GoalKind, Settings] = {
    "classes": {
        "label_weight": 0.99, "distill_weight": 0.001, "max_epochs": 2, "epochs": 3,
        "temperature": 4.0, "forget_batch_size": 512, "batch_size": 256,
    },
    "instances": _INSTANCES,
    "depoison": {
        "label_weight": 1.0, "distill_weight": 0.01, "max_epochs": 2, "epochs": 10,
        "temperature": 2.0, "forget_batch_size": 32, "batch_size": 32,
    },
}  # fmt: skip
_SMALL: Settings = {
    "label_weight": 1.0, "distill_weight": 0.5, "max_epochs": 3, "epochs": 10,
    "temperature": 2.0, "forget_batch_size": 64, "batch_size": 32,
    "optimizer": "adam", "weight_decay": 0.1, "decay": "5-8-9",
}  # fmt: skip
_UNBOUNDED: Settings = {"max_norm": None, "cap": False}
_MILESTONES = {"none": (), "3-5-9": (3, 5, 9), "5-8-9": (5, 8, 9)}
_FIRST_EPS = 1e-6


@register
@dataclass(frozen=True, kw_only=True)
class Scrub(FullNetwork):
    """Alternate between leaving the original model on D_f and staying with it on D_r.

        max pass, first epochs only:  L = -KL_T(teacher(x), z) over D_f
        min pass, every epoch:        L = gamma CE(z, y) + alpha KL_T(teacher(x), z) over D_r
        KL_T(t, s) = T^2 KL(softmax(t / T) || softmax(s / T))

    The max pass comes first and the min pass last. At the start student and teacher are equal, so
    the first max pass has no gradient: movement begins after the first min pass. The divergence is
    unbounded; a forget sample whose KL(softmax(t / T) || softmax(s / T)), without T^2, exceeds
    2 log K + 5 nats no longer counts, so the cap bounds what T softened, not the plain prediction.
    Weights, epochs and batch sizes that are not given are the published ones for the kind of goal.

    Source: Kurmanji, Triantafillou, Hayes, Triantafillou, "Towards Unbounded Machine Unlearning",
        NeurIPS 2023, https://github.com/meghdadk/SCRUB.

    Differences: the cap, and ``max_norm``, both off in the published presets; normalisation
        statistics are frozen; with Adam, epsilon is 1e-6 in the first max pass, where it would
        otherwise blow rounding errors up to full steps.
    """

    card: ClassVar[Card] = Card(
        slug="scrub",
        title="SCRUB",
        goals=("classes", "instances", "depoison"),
        needs=("forget", "retain"),
        edits="all",
        steps="retain",
        cost="3-10 FB + F over D_r, 2-3 FB + F over D_f",
        source="Kurmanji et al. 2023, NeurIPS",
        link="https://arxiv.org/abs/2302.09880",
        about="Leaves the teacher on what is forgotten and stays with it on what is kept, in turn.",
        rank={"instances": 3, "depoison": 2},
        toy={"lr": 0.05, "epochs": 4, "batch_size": 32, "forget_batch_size": 16},
        probe={
            "": {"lr": 0.02, "batch_size": 32, "forget_batch_size": 16, "max_norm": 0.1},
            "distill_weight": {"lr": 0.02, "batch_size": 32, "distill_weight": 0.5},
            "decay": {"lr": 0.02, "epochs": 6, "batch_size": 64},
            "cap": {
                "lr": 0.2,
                "batch_size": 32,
                "max_norm": 1.0,
                "temperature": 1.0,
                "epochs": 3,
                "max_epochs": 3,
            },
        },
        presets={
            "small": {**_SMALL, **_UNBOUNDED},
            "instances": {**_INSTANCES, **_UNBOUNDED},
            "classes": {**_PUBLISHED["classes"], **_UNBOUNDED},
            "depoison": {**_PUBLISHED["depoison"], **_UNBOUNDED},
        },
    )

    label_weight: float | None = bounded(
        None, 0.0, 100.0, "weight of the cross-entropy on D_r; gamma; None by goal"
    )
    distill_weight: float | None = bounded(
        None, 0.0, 100.0, "weight of the divergence on D_r; alpha; None by goal"
    )
    temperature: float | None = bounded(None, 0.1, 100.0, "divides the logits; T; None by goal")
    max_epochs: int | None = bounded(
        None, 0, 1000, "epochs that begin with a max pass; msteps; None by goal"
    )
    epochs: int = bounded(0, 0, 1000, "epochs; 0 takes the published number for the goal")
    forget_batch_size: int | None = bounded(
        None, 1, 65536, "samples a step of the max pass; None by goal"
    )
    batch_size: int | None = bounded(None, 1, 65536, "samples a step of the min pass; None by goal")
    decay: str = choice(
        "3-5-9", ("none", "3-5-9", "5-8-9"), "epochs after which lr falls to a tenth"
    )
    lr: float | None = bounded(5e-4, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    max_norm: float | None = bounded(
        5.0, 0.0, 1e6, "gradient norm above which a step is scaled down", optional=True
    )
    cap: bool = flag(
        default=True,
        about="give samples no weight in a max pass that are 2 log K + 5 nats from their teacher, "
        "both softened by T",
    )

    @property
    def further_forwards(self) -> float:
        """The teacher's."""
        return 1.0

    def further_passes(self, facts: Facts) -> float:
        """Return those of the max passes, with the teacher's forward."""
        most = min(self.max_epochs or 0, self.epochs)
        return most * facts.forget_size * (1 + self.further_forwards / 3)

    def tuned(self, facts: Facts) -> Self:
        """Fill in what was published for the kind of goal."""
        published = _PUBLISHED.get(facts.goal, _INSTANCES)
        missing = {n: v for n, v in published.items() if getattr(self, n) is None}
        if self.epochs == 0:
            missing["epochs"] = published["epochs"]
        return dataclasses.replace(self, **missing)  # type: ignore[arg-type]  # typed by name

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return a max pass while there are some left, then a min pass."""
        least = Pass("retain", name="min", batch_size=self.batch_size)
        if run.epoch >= (self.max_epochs or 0):
            return (least,)
        eps = _FIRST_EPS if run.epoch == 0 else None
        if eps is not None and self.optimizer != "sgd":
            run.log(
                f"{self.card.slug}: in the first max pass, where the model is still its own "
                f"teacher, epsilon of {self.optimizer} is {eps:g}, so that rounding errors are no "
                "full steps"
            )
        most = Pass("forget", name="max", batch_size=self.forget_batch_size, eps=eps)
        return (most, least)

    def rate(self, run: Run) -> float | None:
        """Return the step size after the milestones that lie behind."""
        behind = sum(run.epoch >= milestone for milestone in _MILESTONES[self.decay])
        return (self.lr or 0.0) * 0.1**behind

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return minus the divergence on D_f, or cross-entropy and divergence on D_r."""
        if self.temperature is None or self.label_weight is None or self.distill_weight is None:
            raise TypeError("scrub trains with weights that tuned() has filled in")
        if batch.forget is not None:
            student, teacher = run.logits(batch.forget), run.original_logits(batch.forget)
            if not self.cap:
                return {"forget": -distillation(teacher, student, self.temperature)}
            departure, beyond = bounded_departure(teacher, student, self.temperature)
            run.tally("capped", beyond)
            return {"forget": departure}
        if batch.retain is None:
            raise TypeError("scrub steps over the forget set, then over the retain set")
        student, teacher = run.logits(batch.retain), run.original_logits(batch.retain)
        near = distillation(teacher, student, self.temperature)
        return {
            "retain": self.label_weight * cross_entropy(student, batch.retain.labels),
            "retain_distill": self.distill_weight * near,
        }


@register
@dataclass(frozen=True, kw_only=True)
class ScrubRewind(Scrub):
    """SCRUB, then back to the epoch whose forget error looks like that of unseen samples.

        return the state e in 0..E with |error(D_f; e) - e*| smallest, the later of equals
        e* = error of the final state on validation samples of the forget samples' classes

    Pushing the forget error beyond that of unseen samples gives the forgotten ones away to a
    membership attack. Epoch 0 is the model as it came in. Needs ``.validate(loader)``.

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023.

    Differences: as for ``scrub``; the reference code leaves epoch 0 out. All states are kept in
        memory, E + 1 copies of the weights.
    """

    card: ClassVar[Card] = dataclasses.replace(
        Scrub.card,
        slug="scrub_r",
        aliases=("scrub+r",),
        title="SCRUB+R (with rewinding)",
        goals=("instances",),
        rank={},
        about="SCRUB, rewound to the epoch at which forgotten samples look like unseen ones.",
        toy={
            "lr": 0.2, "epochs": 3, "max_epochs": 3, "label_weight": 0.3, "distill_weight": 0.1,
            "batch_size": 64, "forget_batch_size": 16, "validate": True,
        },
        probe={**Scrub.card.probe, "max_epochs": {"lr": 0.02, "epochs": 2, "max_epochs": 1}},
    )  # fmt: skip

    def setup(self, run: Run) -> State:
        """Make sure that there are unseen samples to compare with."""
        self._unseen(run)
        return {}

    def start_epoch(self, run: Run) -> State:
        """Keep the weights as they stand, and their forget error."""
        return remember(run)

    def finish(self, run: Run) -> bool:
        """Go back to the nearest state."""
        run.log(f"{self.card.slug}: {rewind(run, self._unseen(run))}")
        return True

    def _unseen(self, run: Run) -> SampleSet:
        return unseen_like_forgotten(run, self.card.slug, instead="scrub")
