"""CF-k: fine-tune the last k layers on what is kept."""

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
class CFk(FullNetwork):
    """Freeze all but the last k layers and continue training these on D_r.

        L = CE(z, y) over D_r,  d theta_j = 0 for every layer j before the last k

    Convolutions and linear maps count one each, in the order of the forward pass; the head is
    number 1 from the end, and normalisation belongs to the layer before it. ``unit="block"``
    counts residual or attention blocks. Which layers these are is told in ``result.notes``. All
    tensors before them keep their bits, running statistics included; what those tensors know
    about the forgotten samples stays in the model.

    Source: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", 2022,
        arXiv:2201.06640 (CF-k: catastrophic forgetting of the last k layers).

    Differences: the head always belongs to the k layers (in some codes that compare with CF-k it
        stays frozen). Every step runs the whole network: features before the split are not stored.
    """

    card: ClassVar[Card] = Card(
        slug="cf_k",
        title="CF-k (catastrophic forgetting of the last k layers)",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="retain",
        cost="10 FB over D_r",
        source="Goel et al. 2022",
        link="https://arxiv.org/abs/2201.06640",
        about="Continues training the last k layers on what is kept.",
        dropout=True,
        toy={"lr": 0.3, "epochs": 40, "batch_size": 16},
        probe={"": {"lr": 0.05}, "k": {"k": 1, "lr": 0.05}, "unit": {"k": 2, "lr": 0.05}},
    )

    k: int = bounded(3, 1, 1000, "number of layers (or blocks) that are trained, from the end")
    unit: str = choice("layer", ("layer", "block"), "what k counts")
    epochs: int = bounded(10, 1, 1000, "passes over D_r")
    lr: float | None = bounded(0.01, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")
    bn: str = choice("train", ("frozen", "train"), "running statistics within the k layers")

    def setup(self, run: Run) -> State:
        """Say which layers are trained."""
        layers = described(self._layers(run), {*run.parameters, *run.buffers})
        run.log(f"cf_k trains the last {self.k} {self.unit}s: {layers}")
        return {}

    def trained(self, run: Run) -> Collection[str]:
        """Return the parameters of the last k layers."""
        return {name for layer in self._layers(run) for name in layer.parameters}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on retained samples."""
        if batch.retain is None:
            raise TypeError("cf_k steps over the retain set")
        return {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}

    def _layers(self, run: Run) -> list[Layer]:
        return suffix(run.model, run.retain, run.logits, k=self.k, unit=self.unit)
