"""AMUN: fine-tune on the nearest adversarial neighbours of forget samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forgetkit.errors import DataError
from forgetkit.fields import bounded, choice, pixel_interval
from forgetkit.l2_attacks import nearest_escape
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Need, Pair, Pass, State, register
from forgetkit.moving import sent
from forgetkit.pixels import (
    PixelRange,
    gathered,
    packed,
    pixel_range,
    pixels_of,
    unpacked,
    with_pixels,
)
from forgetkit.recipe import FullNetwork
from forgetkit.types import Batch, PixelBounds, Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Amun(FullNetwork):
    """Train on the nearest adversarial neighbours of D_f with the model's own labels of them.

    Confidence near D_f then falls to that of unseen samples, while D_f keeps its labels.

        x' = nearest to x by L2-PGD with  argmax z(x') != argmax z(x),  y' = argmax z(x')
        L = CE over the joint set of (x', y'), (x, y) of D_f [and (x, y) of D_r]

    Neighbours are made once, with the weights that come in: radii ``attack_radius``, twice,
    four times as much and so on until the prediction changes. A sample for which none is found
    has no neighbour; their number is logged and in ``result.history`` as ``no_neighbour``.

    Single samples only: for a class the true labels of D_f would teach what is to be forgotten.

    Source: Ebrahimpour-Boroojeny, Sundaram, Chandrasekaran, "AMUN: Adversarial Machine
        UNlearning", ICML 2025, https://github.com/Ali-E/AMUN.

    Differences: the first radius is not published, it is 0.05 here, with every channel scaled to
        [0, 1]; the attack leaves the predicted class, which is the label for all that the model
        has learned; normalisation statistics are frozen, so that neighbours made by an attack do
        not enter them (``bn="train"`` lets them in).
    """

    card: ClassVar[Card] = Card(
        slug="amun",
        title="Adversarial Machine Unlearning (AMUN)",
        goals=("instances",),
        needs=("forget", "retain"),
        edits="all",
        steps="forget",
        cost="50 to 500 FB over D_f for the attack, then 10 FB over D_r and twice D_f",
        source="Ebrahimpour-Boroojeny, Sundaram, Chandrasekaran 2025, ICML",
        link="https://github.com/Ali-E/AMUN",
        about="Trains on adversarial neighbours of the forget samples with the model's own labels.",
        toy={"lr": 0.05, "attack_steps": 5, "data": "adversarial", "epochs": 10},
        probe={
            "": {"lr": 0.005, "data": "all", "attack_steps": 3},
            "attack_radius": {"lr": 0.005, "attack_radius": 2.0},
            "doublings": {"lr": 0.005, "attack_radius": 0.2, "doublings": 0, "data": "all"},
        },
    )

    data: str = choice(
        "all",
        ("all", "forget", "adversarial"),
        "what to train on: D_r, D_f and D_A; D_f and D_A; or D_A alone",
    )
    attack_radius: float = bounded(
        0.05, 1e-6, 1e4, "first L2 radius, with every channel scaled to [0, 1]; epsilon"
    )
    doublings: int = bounded(10, 0, 30, "how often the radius may be doubled")
    attack_steps: int = bounded(50, 1, 10000, "steps for each radius, each a tenth of it long")
    bounds: PixelBounds | None = pixel_interval(
        "range of valid pixels, in the units of the model's inputs; None takes the smallest and "
        "largest value of each channel of D_f"
    )
    epochs: int = bounded(10, 1, 1000, "passes over the joint set")
    lr: float | None = bounded(0.01, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(128, 1, 65536, "samples a step")

    @property
    def needs(self) -> tuple[Need, ...]:
        """D_f, and D_r unless ``data`` leaves it out."""
        return ("forget", "retain") if self.data == "all" else ("forget",)

    def setup(self, run: Run) -> State:
        """Make D_A: neighbours of the forget samples, and the model's labels of them."""
        images = (pixels_of(batch.inputs)[1] for batch in run.forget.batches())
        span = pixel_range(self.bounds, images, run.log)
        made = [self.neighbours(batch, run, span) for batch in run.forget.batches()]
        inputs = gathered(part.inputs for part in made)
        labels = torch.cat([part.labels for part in made])
        missing = len(run.forget) - len(labels)
        if len(labels) == 0 and self.data == "adversarial":
            raise DataError(
                f"amun: expected adversarial neighbours of the {missing} samples to forget, found "
                f"none up to a radius of {self.attack_radius * 2**self.doublings:g}; raise "
                "attack_radius or doublings, pass bounds=, or take data='all'"
            )
        run.log(
            f"attack: {len(labels)} of {len(run.forget)} samples have an adversarial neighbour; "
            f"pixels stay in {span.describe()}"
        )
        run.count("no_neighbour", missing)
        return {"labels": labels, **packed(inputs)}

    def neighbours(self, batch: Batch, run: Run, span: PixelRange) -> Batch:
        """Return the neighbours found for a batch, on the host, with the model's labels."""
        pixels = sent(pixels_of(batch.inputs)[1], run.device).float()
        weights = {name: parameter.detach() for name, parameter in run.parameters.items()}

        def logits_of(unit: Tensor, rows: Tensor) -> Tensor:
            inputs = with_pixels(batch.inputs, span.from_unit(unit), rows)
            return run.functional_logits(weights, inputs).float()

        unit, labels, radius = nearest_escape(
            span.to_unit(pixels),
            logits_of,
            radius=self.attack_radius,
            doublings=self.doublings,
            steps=self.attack_steps,
        )
        rows = (radius > 0).nonzero()[:, 0]
        inputs = with_pixels(batch.inputs, span.from_unit(unit[rows]), rows)
        return Batch(inputs, labels[rows].cpu(), batch.index[rows.cpu()], len(rows))

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return one pass over the joint set."""
        neighbours = run.stored(unpacked(run.state), run.state["labels"])
        parts = [neighbours]
        if self.data != "adversarial":
            parts.append(run.forget)
        if self.data == "all":
            parts.append(run.retain)
        return (Pass("forget", forget=run.joined(*parts)),)

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on samples of the joint set."""
        if batch.forget is None:
            raise TypeError("amun steps over the joint set")
        return {"forget": cross_entropy(run.logits(batch.forget), batch.forget.labels)}
