"""ADV+IMP: ADV with a pull on the weights that the forget set does not use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from forgetkit.adversarial import batch_importance, held, pull
from forgetkit.adversarial_recipe import AgainstAdversaries
from forgetkit.curvature import mean_absolute_gradients
from forgetkit.fields import bounded, choice
from forgetkit.method import Card, GoalKind, Pair, State, register
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

_START, _HELD = "start.", "held."


@register
@dataclass(frozen=True, kw_only=True)
class AdvImp(AgainstAdversaries):
    """Do as ADV does, and hold weights the more the less they matter for D_f.

        L = L_ADV + (lambda / 2) sum_i (1 - I_i) (theta_i - theta0_i)^2
        I = (O - min O) / (max O - min O) per tensor,  O_i = mean over D_f of |d |z|^2 / d theta_i|

    theta0 and I are those of the model as it comes in; repeated requests start from the current
    one. With ``importance_weight=0`` it is ADV, but that the terms of L_ADV are added for labels,
    too: where they are weighed by their samples, the pull may keep the labels as they are (1 of
    64 digits had its new label after 1 000 rounds).

    Source: Cha, Cho, Hwang, Lee, Moon, "Learning to Unlearn: Instance-Wise Unlearning for
        Pre-Trained Classifiers", AAAI 2024, arXiv:2301.11578, Section 3.2, Eq. 2 and 7,
        Algorithms 2 to 4; https://github.com/csm9493/L2UL. Others call it IWU.

    Differences: as for ``adv``. The factor 1/2 is the code's, Eq. 7 has none. The code computes
        importance from batch means of the norm without the square, in train mode, and adds the
        gradients of earlier batches again: ``importance="batch"`` does so in eval mode and
        without that addition. A tensor whose weights are all equally important is held.
    """

    added: ClassVar[tuple[GoalKind, ...]] = ("instances", "relabel")
    card: ClassVar[Card] = Card(
        slug="adv_imp",
        title="Instance-wise unlearning with adversarial images and weight importance (ADV+IMP)",
        goals=("instances", "classes", "relabel"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="as adv, and 1 FB per forget sample",
        source="Cha, Cho, Hwang, Lee, Moon 2024, AAAI",
        link="https://arxiv.org/abs/2301.11578",
        about="ADV, with weights that do not matter for the forget set held in place.",
        keeps=0.30,
        aliases=("iwu",),
        rank={"instances": 7, "relabel": 1},
        toy={
            "lr": 0.1,
            "attack_steps": 5,
            "attack_radius": 0.5,
            "adversaries": 2,
            "batch_size": 40,
            "forget_batch_size": 20,
            "epochs": 10,
        },
        probe={
            "": {"lr": 0.0005, "max_norm": 0.01},
            "importance_weight": {"lr": 0.1, "importance_weight": 10.0, "epochs": 3},
            "importance": {"lr": 0.1, "importance_weight": 10.0, "epochs": 3},
            "cap": {
                "lr": 0.1,
                "check_every": 1000,
                "batch_size": 8,
                "epochs": 1,
                "forgotten": "push",
                "bn": "frozen",
            },
            "forgotten": {"lr": 0.05, "batch_size": 16, "epochs": 4, "check_every": 1000},
            "check_every": {"lr": 0.05, "batch_size": 16, "epochs": 4, "classes": (3,)},
        },
        presets={
            "paper": {
                "attack_radius": 0.4,
                "balance": "sum",
                "bn": "frozen",
                "importance_weight": 2.0,  # Eq. 7 has no factor of a half
                "epochs": 100,
                "cap": False,
                "max_norm": None,
                "forgotten": "push",
            },
            "code": {
                "attack_radius": 4.0,
                "balance": "size",
                "importance": "batch",
                "weight_decay": 1e-4,
                "bn": "train",
                "epochs": 1000,
                "max_norm": None,
                "cap": False,
                "forgotten": "push",
            },
        },
    )

    importance_weight: float = bounded(1.0, 0.0, 1e6, "strength of the pull; lambda")
    importance: str = choice(
        "sample", ("sample", "batch"), "importance from single samples, or from batch means (code)"
    )

    def setup(self, run: Run) -> State:
        """Make D_adv, measure importance, and keep the starting weights."""
        weights = {name: parameter.detach() for name, parameter in run.parameters.items()}
        if self.importance == "sample":
            found = mean_absolute_gradients(run.functional_logits, weights, run.forget.batches())
        else:
            rows = run.forget.batches(self.forget_batch_size)
            found = batch_importance(run.functional_logits, weights, rows)
        return {
            **super().setup(run),
            **{_START + name: weight.clone() for name, weight in weights.items()},
            **{_HELD + name: held(value) for name, value in found.items()},
        }

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the terms of ADV and the pull."""
        terms = dict(super().loss(batch, run))
        if batch.forget is not None:
            now: dict[str, Tensor] = dict(run.parameters)
            start = {name: run.state[_START + name] for name in now}
            strength = {name: run.state[_HELD + name] for name in now}
            terms["forget_pull"] = self.importance_weight * pull(now, start, strength)
        return terms
