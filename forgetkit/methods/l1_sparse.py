"""l1-sparse: fine-tuning with a pull to zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forgetkit.fields import bounded, choice, flag
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Pair, State, register
from forgetkit.recipe import FullNetwork
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


def penalty_weight(penalty: float, epoch: int, epochs: int, free_epochs: int) -> float:
    """Return alpha_t = alpha (1 - t / (E - E_0)) for t < E - E_0, else 0."""
    under_penalty = epochs - free_epochs
    return penalty * (1.0 - epoch / under_penalty) if epoch < under_penalty else 0.0


def l1_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of all absolute values, a scalar; the subgradient at 0 is 0."""
    return torch.stack([tensor.float().abs().sum() for tensor in tensors]).sum()


@register
@dataclass(frozen=True, kw_only=True)
class L1Sparse(FullNetwork):
    """Fine-tune on D_r while an l1 penalty, decaying to nothing, makes the network sparse.

        L = CE(z, y) over D_r + alpha_t |theta|_1
        alpha_t = alpha (1 - t / (E - E_0)) in epoch t < E - E_0, 0 in the last E_0 epochs

    The norm is a sum over all weights: with ten million of them 1e-3 is already strong.

    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023,
        arXiv:2304.04934, Section 4; https://github.com/OPTML-Group/Unlearn-Sparse.

    Differences: the authors leave the penalty blank in their instructions; 5e-4 is what others
        report. Their penalty counts biases and normalisation too; ``one_dimensional=False``
        leaves these out. Dropout is on, as in ``finetune``.
    """

    card: ClassVar[Card] = Card(
        slug="l1_sparse",
        title="l1-sparse fine-tuning",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="retain",
        cost="10 FB over D_r",
        source="Jia et al. 2023, NeurIPS",
        link="https://arxiv.org/abs/2304.04934",
        about="Continues training on what is kept while an l1 penalty makes the network sparse.",
        dropout=True,
        toy={"lr": 0.1, "epochs": 40, "batch_size": 64},
        probe={"": {"free_epochs": 0}, "free_epochs": {"free_epochs": 1, "epochs": 4}},
    )

    penalty: float = bounded(5e-4, 0.0, 1.0, "weight of the l1 norm in the first epoch; alpha")
    free_epochs: int = bounded(2, 0, 1000, "last epochs without the penalty; E_0")
    one_dimensional: bool = flag(
        default=True, about="whether the norm counts biases and normalisation too"
    )
    epochs: int = bounded(10, 1, 1000, "passes over D_r; E")
    lr: float | None = bounded(0.01, 0.0, 10.0, "step size of the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")
    bn: str = choice("train", ("frozen", "train"), "D_r is what the statistics should describe")

    def setup(self, run: Run) -> State:
        """Say when no epoch is left for the penalty."""
        if self.penalty > 0 and self.free_epochs >= self.epochs:
            run.log(
                f"l1_sparse: all {self.epochs} epochs are without the penalty, so the run is plain "
                f"fine-tuning; take more epochs than free_epochs={self.free_epochs}"
            )
        return {}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on retained samples, and the penalty."""
        if batch.retain is None:
            raise TypeError("l1_sparse steps over the retain set")
        terms = {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}
        weight = penalty_weight(self.penalty, run.epoch, self.epochs, self.free_epochs)
        if weight > 0.0:
            counted = [p for p in run.parameters.values() if self.one_dimensional or p.ndim > 1]
            terms["retain_penalty"] = weight * l1_norm(counted)
        return terms
