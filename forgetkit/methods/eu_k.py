"""EU-k: retrain the last k layers from untrained weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.fields import bounded, choice
from forgetkit.layers import Layer, described, suffix
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Pair, State, register
from forgetkit.recipe import FullNetwork
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class EUk(FullNetwork):
    """Draw fresh weights for the last k layers and train these alone on D_r.

        theta_j <- fresh for the last k layers;  L = CE(z, y) over D_r,  d theta_j = 0 before them

    Convolutions and linear maps count one each, in the order of the forward pass; the head is
    number 1 from the end, and normalisation belongs to the layer before it. ``unit="block"``
    counts residual or attention blocks. Which layers these are is told in ``result.notes``. All
    tensors before them keep their bits, running statistics included; what those tensors know
    about the forgotten samples stays in the model.

    Fresh weights are those of an untrained copy, so ``.fresh(factory)`` decides them if given.

    Source: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", 2022,
        arXiv:2201.06640 (EU-k: exact unlearning of the last k layers).

    Differences: scale, shift and running statistics of normalisation within the k layers are reset
        as well, and the head is always one of them; in the authors' code the former, in other
        codes also the latter is left out. Every step runs the whole network: features before the
        split are not stored.
    """

    replaces: ClassVar[bool] = True

    card: ClassVar[Card] = Card(
        slug="eu_k",
        title="EU-k (exact unlearning of the last k layers)",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="retain",
        cost="30 FB over D_r",
        source="Goel et al. 2022",
        link="https://arxiv.org/abs/2201.06640",
        about="Retrains the last k layers from scratch on what is kept.",
        dropout=True,
        toy={"lr": 0.1, "epochs": 15, "batch_size": 16},
        probe={"k": {"k": 1}, "unit": {"k": 2}},
    )

    k: int = bounded(3, 1, 1000, "number of layers (or blocks) that are retrained, from the end")
    unit: str = choice("layer", ("layer", "block"), "what k counts")
    epochs: int = bounded(30, 1, 1000, "passes over D_r")
    lr: float | None = bounded(0.01, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")
    bn: str = choice("train", ("frozen", "train"), "running statistics within the k layers")

    def setup(self, run: Run) -> State:
        """Say which layers are retrained."""
        layers = described(self._layers(run), {*run.parameters, *run.buffers})
        run.log(f"eu_k resets and trains the last {self.k} {self.unit}s: {layers}")
        return {}

    def trained(self, run: Run) -> Collection[str]:
        """Return the parameters of the last k layers."""
        return {name for layer in self._layers(run) for name in layer.parameters}

    def begin(self, run: Run) -> None:
        """Replace the last k layers, running statistics included, by those of an untrained copy."""
        twin = run.fresh_twin()
        fresh = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        live = {**run.parameters, **run.buffers}
        for layer in self._layers(run):
            for name in (*layer.parameters, *layer.buffers):
                if name in live:  # frozen tensors are the user's to keep
                    live[name].copy_(fresh[name])

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on retained samples."""
        if batch.retain is None:
            raise TypeError("eu_k steps over the retain set")
        return {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}

    def _layers(self, run: Run) -> list[Layer]:
        return suffix(run.model, run.retain, run.logits, k=self.k, unit=self.unit)
