"""Boundary Expand: send the forget set to an extra class, then cut that class off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from forgetkit.fields import bounded
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Pair, State, register
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


def expanded(logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return logits with those of the shadow class behind them, (batch, classes + 1).

    Args:
        logits: (batch, classes).
        features: (batch, ...), what the head reads.
        weight: (1, dim), the row of the shadow class.
        bias: (1,).
    """
    flat = rearrange(features, "batch ... -> batch (...)").to(weight.dtype)
    return torch.cat([logits.to(weight.dtype), flat @ weight.T + bias], dim=1)


@register
@dataclass(frozen=True, kw_only=True)
class BoundaryExpand(FullNetwork, StopsEarly):
    """Give D_f a class of its own behind the last one, train, and drop it.

        L = CE((z, w h + b), K) over D_f

    h are the features, z the logits of the K classes, (w, b) the row of the shadow class, drawn
    like that of a new linear layer. The row belongs to the run: the head keeps its shape. Without
    it D_f falls to whichever old logit is largest, perhaps the forgotten one, so accuracies are
    those of the model without the row, during the run as after it.

    Source: Chen, Gao, Liu, Peng, Wang, "Boundary Unlearning", CVPR 2023.

    Differences: the run stops as soon as the forget accuracy is 0; normalisation statistics are
        frozen; some ports never drop the row.
    """

    card: ClassVar[Card] = Card(
        slug="boundary_expand",
        title="Boundary Expand",
        goals=("classes",),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="at most 10 FB over D_f",
        source="Chen et al. 2023, CVPR",
        link="https://arxiv.org/abs/2303.11570",
        about="Trains the forget set into an extra class that is dropped afterwards.",
        features=True,
        keeps=0.30,
        toy={"lr": 0.02, "batch_size": 16, "check_every": 1, "epochs": 30},
        probe={"": {"lr": 1e-5}, "check_every": {"lr": 0.05, "epochs": 10, "batch_size": 8}},
    )

    epochs: int = bounded(10, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(1e-5, 0.0, 10.0, "step size of the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")

    def extra(self, run: Run) -> State:
        """Draw the row of the shadow class, uniform in +-1 / sqrt(dim)."""
        features = run.features(next(iter(run.forget.batches(1))))
        width = features[0].numel()
        draws = torch.rand(width + 1, generator=run.generator, dtype=torch.float32)
        draws = draws.to(run.device)
        row = (2 * draws - 1) / math.sqrt(width)
        return {"weight": row[None, :width], "bias": row[width:]}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy towards the shadow class."""
        if batch.forget is None:
            raise TypeError("boundary_expand steps over the forget set")
        features = run.features(batch.forget)
        logits = expanded(run.head(features), features, run.extra["weight"], run.extra["bias"])
        return {
            "forget": cross_entropy(logits, torch.full_like(batch.forget.labels, run.num_classes))
        }
