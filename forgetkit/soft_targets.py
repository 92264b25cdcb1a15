"""What the methods that distil a model from itself, without some classes, have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from forgetkit.fields import bounded, choice
from forgetkit.losses import blocked_classes, membership
from forgetkit.masked_targets import adjusted_probabilities
from forgetkit.method import State
from forgetkit.moving import sent
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.types import Batch

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class SoftTargets(FullNetwork, StopsEarly):
    """A method whose targets are the original model's predictions with some classes taken away.

    The targets P' are ``adjusted_probabilities`` of the weights before the run. They are computed
    once; when the loader augments at random, a frozen copy of the model answers for each batch.
    """

    removed: str = choice(
        "auto",
        ("auto", "label", "argmax"),
        "what the targets lose: auto is the sample's label, and for a class goal every forgotten "
        "class; label is the sample's label alone, so that several classes may be poured into each "
        "other; argmax is the predicted class, for data whose labels are not to be trusted",
    )
    epsilon: float = bounded(0.0, 0.0, 0.99, "probability that a target keeps for what it loses")
    temperature: float = bounded(
        1.0, 0.05, 100.0, "divides the logits of teacher and student; there is no factor T^2"
    )
    reference: float | None = bounded(
        None,
        0.0,
        1.0,
        "forget accuracy to stop at: that of the original model on unseen samples; None takes it "
        "from .validate() for single samples and 0 for classes",
    )

    def setup(self, run: Run) -> State:
        """Compute the targets of D_f, (N_f, K), unless the loader augments at random."""
        self.aim(run)
        return {} if run.random_inputs else self.fixed(run.predictions(run.forget), run)

    def fixed(self, logits: Tensor, run: Run) -> State:
        """Return the targets that the logits of all of D_f make, (N_f, K), as the run's state."""
        return {"targets": self.targets(logits, run.forget.labels.to(run.device), run)}

    def blocked(self, logits: Tensor, labels: Tensor, run: Run) -> Tensor:
        """Return the classes that the targets lose, (batch, classes) booleans."""
        if self.removed == "argmax":
            return membership(logits.argmax(dim=1), run.num_classes)
        if self.removed == "label":
            return membership(labels, run.num_classes)
        return blocked_classes(labels, run.forget_classes, run.num_classes)

    def targets(self, logits: Tensor, labels: Tensor, run: Run) -> Tensor:
        """Return the targets P' that a teacher's logits make, (batch, classes)."""
        return adjusted_probabilities(
            logits,
            self.blocked(logits, labels, run),
            epsilon=self.epsilon,
            temperature=self.temperature,
        )

    def taught(self, batch: Batch, run: Run) -> Tensor:
        """Return the targets of the original model for a batch of D_f, (batch, classes)."""
        known = run.state.get("targets")
        if known is not None:
            return known[sent(batch.index, known.device)]
        return self.targets(run.original_logits(batch), batch.labels, run)

    def aim(self, run: Run) -> None:
        """Let the run stop at ``reference``, where it was given."""
        if self.reference is not None:
            run.target = self.reference
