"""NegGrad: gradient ascent on the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.fields import bounded
from forgetkit.method import Card, Pair, register
from forgetkit.recipe import Ascends, FullNetwork, StopsEarly
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class NegGrad(Ascends, FullNetwork, StopsEarly):
    """Undo training by ascending the loss on D_f.

        L = -CE(z, y) over D_f

    Ascent is unbounded: the gradient norm is clipped, a sample whose loss exceeds 2 log K + 5 nats
    no longer counts, and the run stops at the first check with a forget accuracy at its target.

    Source: Golatkar et al., CVPR 2020 (as a baseline); optimiser of Cha et al., "Learning to
        Unlearn", AAAI 2024, https://arxiv.org/abs/2301.11578.

    Differences: clipping and the cap are this library's choice (``max_norm=None`` and
        ``cap=False`` turn them off, as do the presets, which are those of Cha et al.); the history
        counts what was ``capped``; normalisation statistics are frozen.
    """

    card: ClassVar[Card] = Card(
        slug="neggrad",
        title="NegGrad (gradient ascent)",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="at most 10 FB over D_f",
        source="Golatkar et al. 2020, CVPR (baseline)",
        link="https://arxiv.org/abs/1911.04933",
        about="Climbs the loss on the forget set until it is predicted wrong.",
        keeps=0.40,
        multilabel=True,
        rank={"instances": 8},
        toy={"lr": 0.01, "batch_size": 16, "check_every": 1, "epochs": 20},
        presets={
            "paper": {"batch_size": 32, "epochs": 100, "max_norm": None, "cap": False},
            "code": {
                "batch_size": 32,
                "epochs": 1000,
                "weight_decay": 1e-4,
                "bn": "train",
                "max_norm": None,
                "cap": False,
            },
        },
        probe={
            "": {"lr": 0.0005, "max_norm": 0.01},
            "cap": {"lr": 0.05, "batch_size": 5, "check_every": None, "epochs": 1},
            "check_every": {"lr": 0.02, "epochs": 10, "batch_size": 8},
        },
    )

    epochs: int = bounded(10, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(0.001, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(1e-5, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return minus the cross-entropy on forget samples."""
        if batch.forget is None:
            raise TypeError("neggrad steps over the forget set")
        return {"forget": self.ascent(batch.forget, run)}
