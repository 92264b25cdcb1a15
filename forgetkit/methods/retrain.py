"""Retraining from scratch: the reference that all other methods are judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from forgetkit.fields import bounded, choice
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Facts, Pair, register
from forgetkit.recipe import FullNetwork
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Retrain(FullNetwork):
    """Draw fresh weights and train them on D_r alone.

        L = CE(z, y) over D_r

    All K outputs stay, so that class ids do not shift. One retrained model is one draw: compare
    with at least three seeds.

    Source: the gold reference of every unlearning paper; recipe of the CNN default: Jia et al.,
        "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023,
        https://github.com/OPTML-Group/Unlearn-Sparse.

    Differences: where ``epochs``, ``lr`` or the optimiser are left out, a convolutional network
        gets SGD 0.1 for 160 epochs and a transformer AdamW 5e-5 for 30. Give your own recipe (and
        ``.fresh(factory)``) when the original had another one.
    """

    replaces: ClassVar[bool] = True

    card: ClassVar[Card] = Card(
        slug="retrain",
        title="Retraining from scratch",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="retain",
        cost="E FB over D_r",
        source="the gold reference",
        link="https://github.com/OPTML-Group/Unlearn-Sparse",
        about="Trains untrained weights on what is left: exact, and the most expensive.",
        fresh=True,
        dropout=True,
        multilabel=True,
        keeps=0.20,
        toy={"epochs": 15, "lr": 0.003, "optimizer": "adamw", "batch_size": 32},
    )

    epochs: int = bounded(0, 0, 1000, "passes over D_r; 0: 160, for transformers 30")
    lr: float | None = bounded(
        None, 0.0, 10.0, "step size; None: SGD 0.1, Adam 1e-3; for transformers 0.01 and 5e-5"
    )
    optimizer: str = choice(
        "auto", ("auto", "sgd", "adam", "adamw"), "auto: sgd, for transformers adamw"
    )
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    schedule: str = choice("cosine", ("constant", "cosine"), "how lr moves over the run")
    batch_size: int | None = bounded(256, 1, 65536, "samples a step")
    bn: str = choice("train", ("frozen", "train"), "running statistics must be learned anew")

    def tuned(self, facts: Facts) -> Self:
        """Fill in what depends on the architecture."""
        epochs, optimizer = (30, "adamw") if facts.transformer else (160, "sgd")
        optimizer = optimizer if self.optimizer == "auto" else self.optimizer
        adaptive, steepest = (5e-5, 0.01) if facts.transformer else (1e-3, 0.1)
        lr = steepest if optimizer == "sgd" else adaptive
        return replace(
            self,
            epochs=self.epochs or epochs,
            lr=lr if self.lr is None else self.lr,
            optimizer=optimizer,
        )

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on retained samples."""
        if batch.retain is None:
            raise TypeError("retrain steps over the retain set")
        return {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}
