"""DELETE: distil the model from itself, as if the forgotten class did not exist."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from forgetkit.fields import bounded, flag
from forgetkit.masked_targets import target_divergence
from forgetkit.method import Card, Facts, Pair, State, register
from forgetkit.soft_targets import SoftTargets
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Delete(SoftTargets):
    """Teach each forget sample what the model would say if its class did not exist.

        L = KL(t || softmax(z / T)),   t = softmax(m(z_0) / T) with the original model's logits z_0

    where m sets the logit of the label, and of every forgotten class, to minus infinity. The odds
    among the other classes stay as they were. The gradient in z is (p - t) / T.

    Source: Zhou et al., "Decoupled Distillation to Erase" (DELETE), CVPR 2025, arXiv:2503.23751,
        https://github.com/shaaaaron/DELETE.

    Differences: the gradient never vanishes, so the run stops by the forget accuracy, the code
        after 20 epochs (``all_epochs``); normalisation statistics are frozen (an option there);
        with several forgotten classes all are masked (the code: the label), so none is poured into
        another.
    """

    card: ClassVar[Card] = Card(
        slug="delete",
        title="DELETE",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="1 F and at most 20 FB over D_f",
        source="Zhou et al. 2025, CVPR",
        link="https://arxiv.org/abs/2503.23751",
        about="Distils the model from itself with the forgotten class masked out of the target.",
        rank={"classes": 3, "instances": 6},
        toy={"lr": 0.005, "batch_size": 16, "check_every": 1},
        probe={
            "": {"lr": 0.0003, "batch_size": 16},
            "all_epochs": {"lr": 0.01, "batch_size": 8, "epochs": 4},
            "check_every": {"lr": 0.01, "batch_size": 8, "epochs": 4},
            "max_norm": {"lr": 0.002, "batch_size": 16, "max_norm": 0.05},
            "reference": {"lr": 0.002, "batch_size": 4, "epochs": 8, "reference": 0.9},
            "removed": {"lr": 0.0003, "batch_size": 16, "classes": (2, 3)},
        },
        presets={
            "code": {
                "epochs": 20, "batch_size": 128, "bn": "train", "removed": "label",
                "all_epochs": True,
            },
        },
    )  # fmt: skip

    all_epochs: bool = flag(
        default=False, about="whether the run goes on when the forget accuracy reached its target"
    )
    epochs: int = bounded(20, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(
        None, 0.0, 10.0, "step size; None is 1e-4, and 5e-5 for a transformer"
    )
    batch_size: int | None = bounded(128, 1, 65536, "samples a step")

    def tuned(self, facts: Facts) -> Self:
        """Fill in the published step size."""
        if self.lr is not None:
            return self
        return replace(self, lr=5e-5 if facts.transformer else 1e-4)

    @property
    def single_samples_go_on(self) -> bool:
        """As ``all_epochs`` says."""
        return self.all_epochs

    def setup(self, run: Run) -> State:
        """Compute the targets, and drop the accuracy to stop at where all epochs are wanted."""
        found = super().setup(run)
        if self.all_epochs:
            run.target = None
        return found

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the divergence of the model from its masked targets."""
        forget = batch.forget
        if forget is None:
            raise TypeError("delete steps over the forget set")
        target = self.taught(forget, run)
        return {"forget": target_divergence(run.logits(forget), target, self.temperature)}
