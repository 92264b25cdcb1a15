"""Spotter: masked distillation on the forget set and around it, with its features spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from forgetkit.attacks import projection, sign_attack
from forgetkit.fields import bounded, pixel_interval
from forgetkit.losses import blocked_classes
from forgetkit.masked_targets import evenly_mixed, likeness, target_divergence
from forgetkit.method import Card, Facts, Pair, Pass, Seen, State, register
from forgetkit.moving import sent
from forgetkit.pixels import PixelRange, pixel_range, pixels_of, with_pixels
from forgetkit.soft_targets import SoftTargets
from forgetkit.types import Batch, PixelBounds, Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Spotter(SoftTargets):
    """Distil without the forgotten class at the samples and near them; scatter their features.

        L = l KL(t || p)(x) + (1 - l) KL(t || p)(x') + s mean_{i != j, y_i = y_j} cos(h_i, h_j)

    p is the model, t the original model's prediction without the forgotten classes, h the
    features of x. The neighbour x' is where PGD arrives that starts from x and pulls the original
    model towards its runner-up class: x' <- clip(x' - a sign(grad CE(z_0(x'), runner-up))).
    Distilling there keeps the surroundings of the class from being unlearned with it; the last
    term leaves no prototype of the class from which a few samples could bring it back.

    Source: Ha, Park, Yoon, "Unlearning's Blind Spots", ICML 2026, arXiv:2506.01318;
        https://github.com/Seung-B/Spotter-Unlearning.

    Differences: the authors' code moves away from the runner-up, clamps normalised inputs to
        [0, 1] and starts from noise; here the text is followed, radius and step refer to the range
        of the inputs (``bounds``), and the start is x. At least ``least_epochs`` epochs are made,
        because the last term needs them. With several classes the batches are mixed evenly.
    """

    compares: ClassVar[bool] = True

    card: ClassVar[Card] = Card(
        slug="spotter",
        title="Spotter",
        goals=("classes",),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="1 F, then at most 10 (5 FB + 2 F) over D_f",
        source="Ha, Park, Yoon 2026, ICML",
        link="https://arxiv.org/abs/2506.01318",
        about="Masked distillation on forget samples and their neighbours, with features spread.",
        features=True,
        toy={"lr": 0.005, "batch_size": 16, "check_every": 1},
        probe={
            "": {"lr": 0.0003, "batch_size": 32, "attack_steps": 2},
            "check_every": {
                "lr": 0.0001, "batch_size": 4, "epochs": 8, "least_epochs": 1, "reference": 0.25,
            },
            "least_epochs": {"lr": 0.02, "batch_size": 32, "epochs": 6, "least_epochs": 1},
            "max_norm": {"lr": 0.002, "batch_size": 32, "max_norm": 0.05},
            "reference": {
                "lr": 0.0001, "batch_size": 4, "epochs": 8, "least_epochs": 1, "reference": 0.9,
                "check_every": 1,
            },
            "removed": {"removed": "argmax"},
        },
    )  # fmt: skip

    forget_weight: float = bounded(
        0.7, 0.0, 1.0, "weight of D_f; its neighbours have the rest; lambda_1"
    )
    spread_weight: float = bounded(1.0, 0.0, 1000.0, "weight of the likeness of features; lambda_2")
    attack_radius: float = bounded(
        0.03, 0.0, 1.0, "how far a neighbour is, as a part of the range of a pixel; epsilon"
    )
    attack_step: float = bounded(0.01, 0.0, 1.0, "length of an attack step, in the same unit")
    attack_steps: int = bounded(3, 1, 1000, "number of attack steps")
    bounds: PixelBounds | None = pixel_interval(
        "range of the inputs; None takes the smallest and largest value of each channel in D_f"
    )
    least_epochs: int = bounded(3, 1, 1000, "epochs before the run may stop")
    epochs: int = bounded(10, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(
        None, 0.0, 10.0, "step size; None is 1e-4, and 5e-5 for a transformer"
    )
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(128, 1, 65536, "samples a step")

    def tuned(self, facts: Facts) -> Self:
        """Fill in the published step size."""
        if self.lr is not None:
            return self
        return replace(self, lr=5e-5 if facts.transformer else 1e-4)

    def setup(self, run: Run) -> State:
        """Compute the targets of D_f, (N_f, K), and the range of its pixels."""
        if self.forget_weight == 1.0:
            return super().setup(run)
        images = (pixels_of(batch.inputs)[1] for batch in run.forget.batches())
        found = pixel_range(self.bounds, images, run.log)
        return {**super().setup(run), "low": found.low, "high": found.high}

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return one pass over D_f, whose batches hold several samples of each class."""
        if self.spread_weight == 0.0 or len(run.forget_classes) == 1:
            return super().passes(run)
        order = evenly_mixed(run.forget.labels, run.generator)
        return (Pass("forget", forget=run.rows(run.forget, order), shuffle=False),)

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the divergences at forget samples and near them, and the likeness of features."""
        forget = batch.forget
        if forget is None:
            raise TypeError("spotter steps over the forget set")
        terms: dict[str, Tensor] = {}
        if self.spread_weight > 0.0:
            features = run.features(forget)
            logits = run.head(features)
            terms["spread"] = self.spread_weight * likeness(features, forget.labels)
        else:
            logits = run.logits(forget)
        own = target_divergence(logits, self.taught(forget, run), self.temperature)
        terms["forget"] = self.forget_weight * own
        if self.forget_weight < 1.0:
            near = self.neighbours(forget, run)
            target = self.targets(run.original_logits(near), near.labels, run)
            beside = target_divergence(run.logits(near), target, self.temperature)
            terms["near"] = (1.0 - self.forget_weight) * beside
        return terms

    def neighbours(self, batch: Batch, run: Run) -> Batch:
        """Return the batch moved towards the original model's runner-up class."""
        blocked = blocked_classes(batch.labels, run.forget_classes, run.num_classes)
        runner_up = run.original_logits(batch).masked_fill(blocked, -torch.inf).argmax(dim=1)
        limits = PixelRange(run.state["low"], run.state["high"], "setup")
        start = limits.to_unit(sent(pixels_of(batch.inputs)[1], run.device).float())
        rows = torch.arange(len(batch))

        def moved(unit: Tensor) -> Batch:
            return replace(batch, inputs=with_pixels(batch.inputs, limits.from_unit(unit), rows))

        near = sign_attack(
            start,
            lambda unit: run.logits_of(run.original, moved(unit)),
            runner_up,
            step=-self.attack_step,  # downhill on the loss of the runner-up: towards it
            steps=self.attack_steps,
            project=projection(start, self.attack_radius, (0.0, 1.0)),
        )
        return moved(near)

    def checked(self, seen: Seen, run: Run) -> str | None:
        """Stop as soon as the class is gone, but not before ``least_epochs`` epochs."""
        done = run.epoch + int(seen.epoch_ended)
        return super().checked(seen, run) if done >= self.least_epochs else None
