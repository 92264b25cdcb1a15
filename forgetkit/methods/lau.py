"""LAU: Layer Attack Unlearning."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from forgetkit.fields import bounded, choice, flag, interval
from forgetkit.layer_attack import LayerAttack
from forgetkit.losses import blocked_classes, kl_divergence
from forgetkit.method import Card, Pair, Seen, State, register
from forgetkit.moving import sent
from forgetkit.recipe import StopsEarly
from forgetkit.types import Terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forgetkit.engine.run import Run


logger = logging.getLogger("forgetkit")


@register
@dataclass(frozen=True, kw_only=True)
class LAU(StopsEarly):
    """Move each forget feature to the class that a sign attack in feature space reaches first.

    Only the head changes. Per epoch the teacher T is the head as it stands; the bank F of features
    is attacked (Partial-PGD): A <- A + epsilon sign(grad_A CE(T(A), y)), n times. For a sample
    that is still remembered the targets are those of T(A), for the others the student's own:

        L = (1 - alpha) CE(z, c) + alpha T^2 KL(Q || softmax(z / T)),
        c = argmax T(A) outside the forgotten classes, Q = softmax(softmax(T(A)) / T).

    Source: Kim, Lee, Woo, "Layer Attack Unlearning", AAAI 2024, arXiv:2312.16823, Eq. 4-7,
        Algorithm 1.

    Differences: the printed Eq. 6 has the student first in KL, which ``kd_direction="student"``
        follows; n = 10, 30 epochs and batches of 128 are choices of this library, the paper names
        none. The paper leaves the projection undefined, it is the identity here unless
        ``attack_radius`` or ``attack_clamp`` is given; the stop rule looks at all of D_f after
        every batch; several classes may be forgotten at once, then none of them can be a target;
        momentum is 0.9, the paper names it for training only (``preset="paper"`` turns it off).
        ``preset="code"`` has the attack and the distance of a third-party version, not its batch
        normalisation in train mode nor its stop at the first batch of an epoch.
        With several classes the run ends when no sample is read as any of them. What ``share``
        draws is all that is read, trained on and measured, as if the rest were not at hand.
    """

    card: ClassVar[Card] = Card(
        slug="lau",
        title="Layer Attack Unlearning",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="head",
        steps="forget",
        cost="1 F over D_f, then head algebra",
        source="Kim, Lee, Woo 2024, AAAI",
        link="https://arxiv.org/abs/2312.16823",
        about="Teaches the last layer the neighbouring class that a feature-space attack finds.",
        rank={"classes": 2},
        probe={
            "": {"lr": 0.0003, "batch_size": 16},
            "check_every": {"lr": 0.01, "batch_size": 8, "epochs": 10},
        },
        presets={
            "paper": {"momentum": 0.0},
            "code": {
                "attack_steps": 40,
                "attack_step": 0.4,
                "attack_radius": 0.3,
                "attack_clamp": (0.0, 1.0),
                "kd_reduction": "mean",
            },
        },
    )

    alpha: float = bounded(0.5, 0.0, 1.0, "weight of the distillation term; alpha in Eq. 7")
    temperature: float = bounded(4.0, 0.1, 100.0, "divides what is distilled; T in Eq. 6")
    double_softmax: bool = flag(
        default=True, about="distil softmax(softmax(z) / T), as in the paper, not softmax(z / T)"
    )
    attack: str = choice("partial", ("partial", "full"), "attack features, or images (Table 3)")
    attack_step: float = bounded(0.6, 0.0, 100.0, "length of an attack step; epsilon")
    attack_steps: int = bounded(10, 1, 1000, "number of attack steps; n")
    attack_radius: float | None = bounded(None, 0.0, 1e6, "L-infinity ball around the start")
    attack_clamp: tuple[float, float] | None = interval("range of attacked features or pixels")
    kd_direction: str = choice(
        "target", ("target", "student"), "KL(target || student), or the reverse"
    )
    kd_reduction: str = choice(
        "batchmean", ("batchmean", "mean"), "KL summed over classes, or averaged over them too"
    )
    edit_bias: bool = flag(default=True, about="whether the bias of the head may change")
    share: float = bounded(1.0, 0.001, 1.0, "part of D_f that is used, drawn at random (Table 5)")
    epochs: int = bounded(30, 1, 1000, "largest number of passes over the bank; E")
    lr: float | None = bounded(0.003, 0.0, 10.0, "step size of SGD")
    batch_size: int | None = bounded(128, 1, 65536, "rows of the bank a step")
    check_every: int | None = bounded(1, 1, 100000, "batches between checks of the forget accuracy")

    def choose(self, labels: Tensor, generator: Generator) -> Tensor | None:
        """Return a random ``share`` of D_f, at least one sample."""
        if self.share == 1.0:
            return None
        count = max(1, round(self.share * len(labels)))
        return torch.randperm(len(labels), generator=generator)[:count].sort().values

    def setup(self, run: Run) -> State:
        """Say that single samples are more than a linear head can forget."""
        if run.goal.kind == "instances":
            logger.warning(
                "lau forgets classes: a linear head cannot separate a few images from others of "
                "their class, so retained images of these classes fall too; use a full-network "
                "method for single samples"
            )
        if self.share < 1.0:
            run.log(
                f"lau: share={self.share:g} drew {len(run.forget)} samples of D_f; its accuracies "
                "are of these alone"
            )
        return {}

    def start_epoch(self, run: Run) -> State:
        """Attack the whole bank with the head as it stands; return the teacher's logits, (N, K)."""
        attack = LayerAttack(
            self.attack_step, self.attack_steps, self.attack_radius, self.attack_clamp
        )
        attacked = attack.on_images(run) if self.attack == "full" else attack.on_features(run)
        labels = sent(run.forget.labels, attacked.device)
        blocked = blocked_classes(labels, run.forget_classes, run.num_classes)
        failed = blocked.gather(1, attacked.argmax(dim=1, keepdim=True))
        run.count("failed_attacks", failed.float().mean())
        return {"teacher": attacked}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the hard term (1 - alpha) CE and the soft term alpha T^2 KL."""
        rows = batch.forget
        if rows is None:
            raise TypeError("LAU steps over the forget set")
        student = run.logits(rows)
        own = student.detach()
        teacher = run.state["teacher"]
        teacher = teacher[sent(rows.index, teacher.device)]
        blocked = blocked_classes(rows.labels, run.forget_classes, run.num_classes)
        predicted = own.argmax(dim=1)
        remembered = blocked.gather(1, predicted[:, None])[:, 0]

        reached = teacher.masked_fill(blocked, -torch.inf).argmax(dim=1)
        hard = functional.cross_entropy(student, torch.where(remembered, reached, predicted))

        # For a sample already forgotten both targets are the student's own output: it stays put.
        target = self.softened(torch.where(remembered[:, None], teacher, own))
        soft = self._distance(target, student / self.temperature)
        return {
            "hard": (1 - self.alpha) * hard,
            "soft": self.alpha * self.temperature**2 * soft,
        }

    def movable(self, run: Run) -> Mapping[str, Tensor]:
        """Hold the bias when ``edit_bias`` is off."""
        if self.edit_bias:
            return {}
        return {
            name: torch.zeros_like(parameter)
            for name, parameter in run.parameters.items()
            if parameter.ndim == 1
        }

    def checked(self, seen: Seen, run: Run) -> str | None:
        """Stop when no sample is read as any forgotten class, its own or another one."""
        if len(run.forget_classes) > 1 and seen.forget_accuracy <= (run.target or 0.0):
            gone = torch.tensor(run.forget_classes, device=run.device)
            inside = torch.isin(run.predictions(run.forget).argmax(dim=1), gone)
            seen = replace(seen, forget_accuracy=float(inside.float().mean()))
        return super().checked(seen, run)

    def softened(self, scores: Tensor) -> Tensor:
        """Return what softmax turns into the soft target Q, from scores (batch, classes)."""
        return (scores.softmax(dim=1) if self.double_softmax else scores) / self.temperature

    def _distance(self, target: Tensor, student: Tensor) -> Tensor:
        """Return the Kullback-Leibler distance of two (batch, classes) rows of scores."""
        first, second = target, student
        if self.kd_direction == "student":
            first, second = student, target
        distance = kl_divergence(first.softmax(dim=1), second.log_softmax(dim=1))
        return distance / target.shape[1] if self.kd_reduction == "mean" else distance
