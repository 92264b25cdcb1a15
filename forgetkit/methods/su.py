"""SU: self-unlearning by soft labels, with the original model as teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from forgetkit.fields import bounded, choice
from forgetkit.masked_targets import target_divergence
from forgetkit.method import Card, Facts, Pair, register
from forgetkit.soft_targets import SoftTargets
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

EPOCH = 100_000
"""Steps between checks that no epoch has: the authors check after each epoch."""

SMALL = 4096
"""Largest D_f whose accuracy is checked after every batch unless the user says otherwise."""


@register
@dataclass(frozen=True, kw_only=True)
class SU(SoftTargets):
    """Take the true class out of the model's own output and distil the rest back.

        L = KL(P' || softmax(z / T)) over D_f
        P'_y = epsilon,  P'_j = (1 - epsilon) p_j / sum_{i != y} p_i,  p = softmax(z_0 / T)

    with the logits z_0 of the original weights, computed once (selective probability adjustment,
    SPA). A class goal takes all forgotten classes out together. The objective is that of DELETE;
    optimiser and checks differ.

    Source: Lyu et al., "Fine-Grained and Efficient Self-Unlearning with Layered Iteration",
        sections on SPA and SU, https://github.com/Hongyi-Lyu-MQ/SULI.

    Differences: normalisation statistics are frozen and T is 1 (the code trains them and has T = 4
        for classes); single samples lose their label (the code: the predicted class); D_f of up to
        4096 samples is checked after every batch, because checks between epochs, which the presets
        have, overshoot; at most 30 epochs for classes, too (the paper: 10). The paper prints no
        step sizes: its presets have those of the code.
    """

    card: ClassVar[Card] = Card(
        slug="su",
        title="SU (self-unlearning)",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="1 F, then at most 30 (FB + F for the check) over D_f",
        source="Lyu et al. 2025, IJCAI",
        link="https://github.com/Hongyi-Lyu-MQ/SULI",
        about="Distils the model's own output, with the true class removed, back into it.",
        toy={"lr": 0.003, "batch_size": 16, "epochs": 15},
        probe={
            "": {"lr": 0.0003, "batch_size": 16},
            "check_every": {"lr": 0.002, "batch_size": 8, "epochs": 5},
            "optimizer": {"lr": 0.0003, "batch_size": 16, "weight_decay": 0.1},
            "reference": {"lr": 0.001, "batch_size": 4, "epochs": 5, "reference": 0.9},
            "removed": {"classes": (2, 3)},
        },
        presets={
            "paper": {
                "lr": 1e-4, "temperature": 1.0, "epochs": 10, "batch_size": 256, "removed": "label",
                "check_every": EPOCH,
            },
            "paper_instances": {
                "lr": 6e-5, "temperature": 1.0, "epochs": 30, "batch_size": 256, "removed": "label",
                "check_every": EPOCH,
            },
            "code": {
                "lr": 1e-4, "temperature": 4.0, "epochs": 10, "batch_size": 256, "bn": "train",
                "check_every": EPOCH,
            },
            "code_instances": {
                "lr": 6e-5, "epochs": 30, "batch_size": 256, "bn": "train", "removed": "argmax",
                "check_every": EPOCH,
            },
        },
    )  # fmt: skip

    epochs: int = bounded(
        30, 1, 1000, "largest number of passes over D_f; published: 10 for classes, 30 for samples"
    )
    lr: float | None = bounded(
        None,
        0.0,
        10.0,
        "step size; None is 1e-4 for classes and 6e-5 for samples, a tenth for a transformer",
    )
    optimizer: str = choice("adam", ("sgd", "adam", "adamw"), "the optimiser")
    batch_size: int | None = bounded(256, 1, 65536, "samples a step")
    check_every: int | None = bounded(
        None,
        1,
        100000,
        "steps between checks of the forget accuracy; None checks each batch of a D_f of up to "
        "4096 samples, else each epoch",
    )

    def tuned(self, facts: Facts) -> Self:
        """Fill in the published step size, and how often to check."""
        lr, every = self.lr, self.check_every
        if lr is None:
            lr = (6e-5 if facts.goal == "instances" else 1e-4) * (0.1 if facts.transformer else 1.0)
        if every is None and facts.forget_size <= SMALL:
            every = 1
        return replace(self, lr=lr, check_every=every)

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the divergence of the model from its adjusted targets."""
        forget = batch.forget
        if forget is None:
            raise TypeError("su steps over the forget set")
        target = self.taught(forget, run)
        return {"forget": target_divergence(run.logits(forget), target, self.temperature)}
