"""CORRECT: train samples towards their new labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from forgetkit.fields import bounded
from forgetkit.losses import blocked_classes, cross_entropy
from forgetkit.method import Card, Pair, State, register
from forgetkit.moving import sent
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.relabelling import drawn_labels, reject_contradictions
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Correct(FullNetwork, StopsEarly):
    """Train on D_f with corrected labels and nothing else.

        L = CE(z, y*) over D_f,  y* != y

    For a relabel goal y* is the label asked for; when single samples are to be forgotten, each
    gets one class other than its own, drawn uniformly and once, equal images the same one. The run
    stops at the first check at which all of D_f has its new labels (is predicted otherwise than
    before).

    Nothing holds the rest of the model: with few samples much else is lost, see ``adv_imp``.

    Source: Cha, Cho, Hwang, Lee, Moon, "Learning to Unlearn: Instance-Wise Unlearning for
        Pre-Trained Classifiers", AAAI 2024, arXiv:2301.11578, Section 3.2, Eq. 4.

    Differences: normalisation statistics are frozen; gradients are clipped (``max_norm=None`` turns
        this off, as the presets do); two equal images with different new labels are refused, and
        so are those whose own labels leave no class to draw.
    """

    card: ClassVar[Card] = Card(
        slug="correct",
        title="Correcting labels (CORRECT)",
        goals=("instances", "relabel"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="at most 100 FB over D_f",
        source="Cha, Cho, Hwang, Lee, Moon 2024, AAAI (baseline)",
        link="https://arxiv.org/abs/2301.11578",
        about="Trains samples towards their corrected labels.",
        rank={"relabel": 2},
        toy={"lr": 0.05, "batch_size": 16, "epochs": 60},
        probe={
            "": {"lr": 1e-4, "max_norm": 0.01},
            "check_every": {"lr": 0.05, "batch_size": 16, "epochs": 100},
        },
        presets={
            "paper": {"batch_size": 32, "epochs": 100, "max_norm": None},
            "code": {
                "batch_size": 32,
                "epochs": 1000,
                "weight_decay": 1e-4,
                "bn": "train",
                "max_norm": None,
            },
        },
    )

    to_zero: ClassVar[bool] = True

    epochs: int = bounded(100, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(0.001, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(1e-5, 0.0, 1.0, "L2 penalty inside the optimiser")
    batch_size: int | None = bounded(32, 1, 65536, "samples a step")
    max_norm: float | None = bounded(
        5.0, 0.0, 1e6, "gradient norm above which a step is scaled down", optional=True
    )

    def setup(self, run: Run) -> State:
        """Return the wanted labels, (N_f,): those asked for, else drawn ones."""
        wanted = run.forget.new_labels
        if wanted is not None:
            reject_contradictions(run.forget, wanted)
            return {"wanted": wanted}
        blocked = blocked_classes(run.forget.labels, run.forget_classes, run.num_classes)
        wanted = drawn_labels(run.forget, partial(run.uniform, "correct"), blocked)
        return {"wanted": wanted}

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy to the wanted labels."""
        forget = batch.forget
        if forget is None:
            raise TypeError("correct steps over the forget set")
        logits = run.logits(forget)
        wanted = sent(run.state["wanted"][forget.index.cpu()], logits.device)
        return {"forget": cross_entropy(logits, wanted)}
