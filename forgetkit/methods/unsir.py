"""UNSIR: impair with error-maximising noise, then repair on retained samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from forgetkit.errors import DataError
from forgetkit.fields import bounded, choice
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Facts, Pair, Pass, State, register
from forgetkit.noise import error_maximising_noise
from forgetkit.recipe import FullNetwork
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

_IMPAIR, _REPAIR, _TRANSFORMER = 0.02, 0.01, 1e-4


def some_per_class(labels: Tensor, draws: Tensor, most: int) -> Tensor:
    """Return rows of at most ``most`` samples of each class, those with the smallest draws."""
    rows = []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        rows.append(own[draws[own].argsort()[:most]])
    return torch.cat(rows).sort().values


@register
@dataclass(frozen=True, kw_only=True)
class Unsir(FullNetwork):
    """Train on noise that stands for the class and is as unlike it as can be, then repair.

        noise:   minimise -CE(f(N), c) + energy_weight * mean sum N^2 over inputs N, for each c
        impair:  L = CE(z, y) over the noise, labelled c and repeated, and samples of D_r
        repair:  L = CE(z, y) over the same samples of D_r, with a step size of its own

    No forget image is read, but for a ``mask``. The impair pass leaves retained accuracy low; the
    repair pass brings it back.

    Source: Tarun, Chundawat, Mandal, Kankanhalli, "Fast Yet Effective Machine Unlearning", IEEE
        TNNLS 2023, https://github.com/vikram2000b/Fast-Machine-Unlearning.

    Differences: the code uses three of the noise images and gives all of them the first class;
        here all are used, with their own class. The noise is made in eval mode. Transformers get
        a step size of 1e-4, since the published ones were for small networks from scratch; other
        pre-trained networks, which ports give that size too, get it with ``preset="ports"`` only.
        Nothing is measured between the two phases; the guard looks at the end.
    """

    card: ClassVar[Card] = Card(
        slug="unsir",
        title="UNSIR (impair and repair)",
        goals=("classes",),
        needs=("retain",),
        edits="all",
        steps="retain",
        cost="40 FB over 256 noise images a class, 2 FB over part of D_r",
        source="Tarun et al. 2023, IEEE TNNLS",
        link="https://arxiv.org/abs/2111.08947",
        about="Impairs the model with error-maximising noise, then repairs it on kept samples.",
        keeps=0.15,
        toy={
            "noise_size": 16, "copies": 8, "batch_size": 32, "lr": 0.02, "repair_lr": 0.01,
            "noise_steps": 20,
        },
        probe={
            "": {
                "noise_size": 8, "copies": 2, "batch_size": 16, "retain_per_class": 30,
                "noise_steps": 4, "max_norm": 0.1, "epochs": 1,
            },
            "optimizer": {"noise_steps": 2, "copies": 2, "weight_decay": 0.1, "epochs": 1},
        },
        presets={
            "ports": {
                "noise_steps": 250, "lr": 1e-4, "repair_lr": 1e-4, "retain_per_class": 500,
                "batch_size": 32, "noise_size": 32, "copies": 80,
            },
        },
    )  # fmt: skip

    noise_size: int = bounded(256, 1, 65536, "noise images for each forgotten class; B")
    noise_steps: int = bounded(40, 1, 100000, "steps of Adam on the noise")
    noise_lr: float = bounded(0.1, 0.0, 10.0, "step size of Adam on the noise")
    energy_weight: float = bounded(0.1, 0.0, 100.0, "price of the noise's squared length; lambda")
    copies: int = bounded(20, 1, 10000, "times that each noise image is in the impair pass")
    retain_per_class: int = bounded(1000, 1, 10**9, "samples of each kept class in both passes")
    repair_lr: float | None = bounded(
        None, 0.0, 10.0, "step size of the repair pass; None takes 0.01, 0.0001 for transformers"
    )
    epochs: int = bounded(1, 1, 1000, "rounds of impair and repair")
    lr: float | None = bounded(
        None, 0.0, 10.0, "step size of the impair pass; None takes 0.02, 0.0001 for transformers"
    )
    optimizer: str = choice("adam", ("sgd", "adam", "adamw"), "the optimiser")
    batch_size: int | None = bounded(256, 1, 65536, "samples a step")
    bn: str = choice("train", ("frozen", "train"), "most samples come from D_r")

    def tuned(self, facts: Facts) -> Self:
        """Fill in step sizes for the kind of network."""
        impair = _TRANSFORMER if facts.transformer else _IMPAIR
        repair = _TRANSFORMER if facts.transformer else _REPAIR
        return dataclasses.replace(
            self,
            lr=impair if self.lr is None else self.lr,
            repair_lr=repair if self.repair_lr is None else self.repair_lr,
        )

    def setup(self, run: Run) -> State:
        """Choose the kept samples, and make noise for each forgotten class, model frozen."""
        retain = run.retain
        draws = run.uniform("unsir", retain.positions)
        shape = self._image(run).shape
        noise = []
        for label in run.forget_classes:
            start = torch.randn(
                self.noise_size, *shape, generator=run.generator, dtype=torch.float32
            )
            made = error_maximising_noise(
                start.to(run.device),
                label,
                run.logits_from_inputs,
                energy_weight=self.energy_weight,
                lr=self.noise_lr,
                steps=self.noise_steps,
            )
            noise.append(made.cpu())
        return {
            "rows": some_per_class(retain.labels, draws, self.retain_per_class),
            "noise": torch.cat(noise),
            "labels": torch.tensor(run.forget_classes).repeat_interleave(self.noise_size),
        }

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return the impair pass on noise and kept samples, and the repair pass on the latter."""
        kept = run.rows(run.retain, run.state["rows"])
        stored = run.stored(run.state["noise"], run.state["labels"])
        noise = run.rows(stored, torch.arange(len(stored)).repeat(self.copies))
        return (
            Pass("retain", name="impair", retain=run.joined(noise, kept), fresh_optimizer=True),
            Pass("retain", name="repair", retain=kept, lr=self.repair_lr, fresh_optimizer=True),
        )

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on noise and kept samples."""
        if batch.retain is None:
            raise TypeError("unsir steps over noise and kept samples")
        return {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}

    def _image(self, run: Run) -> Tensor:
        """Return one kept image, whose shape the noise takes."""
        inputs = next(iter(run.retain.batches(1))).inputs
        if not isinstance(inputs, Tensor):
            raise DataError(
                f"unsir: expected images as one tensor, found named inputs {', '.join(inputs)}; "
                "pass a loader of (images, labels) pairs"
            )
        return inputs[0]
