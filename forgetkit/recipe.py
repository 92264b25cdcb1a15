"""The training choices that every trained method shares, as hyper-parameters with ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.errors import BadHyperparameter
from forgetkit.fields import bounded, choice, flag
from forgetkit.losses import capped_ascent, cross_entropy
from forgetkit.method import Facts, Method

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.engine.run import Run
    from forgetkit.types import Batch


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """A method that the engine trains. Subclasses override the defaults, not the meaning.

    Attributes:
        replaces: whether weights are replaced before the first step, which no mask can hold back.
        compares: whether the loss of a sample depends on others of its batch.
        heeds_forget_accuracy: whether ``checked`` asks for it between two epochs; D_f is not
            measured there otherwise.

    Raises:
        BadHyperparameter: ``mask`` is given to a method that replaces weights.
    """

    replaces: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    heeds_forget_accuracy: ClassVar[bool] = True

    epochs: int = bounded(10, 1, 1000, "passes over the set that drives the method")
    lr: float | None = bounded(0.001, 0.0, 10.0, "step size of the optimiser")
    optimizer: str = choice("sgd", ("sgd", "adam", "adamw"), "the optimiser")
    momentum: float = bounded(0.9, 0.0, 0.999, "momentum of SGD, first beta of Adam")
    weight_decay: float = bounded(0.0, 0.0, 1.0, "L2 penalty inside the optimiser")
    schedule: str = choice("constant", ("constant", "cosine"), "how lr moves over the run")
    batch_size: int | None = bounded(
        None, 1, 65536, "samples a step; None takes the loader's batch size"
    )
    max_norm: float | None = bounded(
        None, 0.0, 1e6, "gradient norm above which a step is scaled down; None never clips"
    )
    mask: float | None = bounded(
        None,
        0.0,
        1.0,
        "share of the weights, those with the largest forget gradient, that may move (SalUn); "
        "None lets all move",
    )

    @property
    def further_forwards(self) -> float:
        """Forward passes over the driving set in an epoch, beside the steps and a look at D_f."""
        return 0.0

    def further_passes(self, facts: Facts) -> float:  # noqa: ARG002
        """Return the forward and backward passes over one sample of a run beside its ``steps``.

        For a method whose epochs hold passes over another set. A forward alone is a third.
        """
        return 0.0

    def __post_init__(self) -> None:
        """Check every hyper-parameter, and that a mask can hold."""
        super().__post_init__()
        if self.replaces and self.mask is not None:
            raise BadHyperparameter(
                f"{self.card.slug}: mask must be None, found {self.mask!r}; this method replaces "
                "weights before it trains, which a mask cannot hold back; leave it out, or take "
                "finetune or salun for an edit of few weights"
            )


@dataclass(frozen=True, kw_only=True)
class FullNetwork(Trained):
    """A trained method that edits the whole network, normalisation layers included.

    A subclass whose default is None fills it in in ``tuned``.
    """

    bn: str | None = choice(
        "frozen",
        ("frozen", "train"),
        "running statistics of normalisation layers: frozen, or batch statistics and updates",
    )


@dataclass(frozen=True, kw_only=True)
class Ascends(Trained):
    """A trained method that climbs the cross-entropy of D_f, which has no upper bound (rule R5).

    Name it before the other bases: of fields that several bases have, the first one's counts.
    """

    max_norm: float | None = bounded(
        5.0, 0.0, 1e6, "gradient norm above which a step is scaled down", optional=True
    )
    cap: bool = flag(
        default=True, about="give samples whose loss exceeds 2 log K + 5 nats no weight"
    )

    def ascent(self, batch: Batch, run: Run) -> Tensor:
        """Return minus the mean cross-entropy, and count what was capped in the history."""
        logits = run.logits(batch)
        if not self.cap:
            return -cross_entropy(logits, batch.labels)
        lost, beyond = capped_ascent(logits, batch.labels)
        run.tally("capped", beyond)
        return lost


@dataclass(frozen=True, kw_only=True)
class StopsEarly(Trained):
    """A trained method that is done as soon as the forget accuracy reaches its target.

    Attributes:
        to_zero: whether that is 0 for single samples even where validation data tell how well
            unseen ones are predicted.
    """

    to_zero: ClassVar[bool] = False

    check_every: int | None = bounded(
        None, 1, 100000, "steps between checks of the forget accuracy; None checks every epoch"
    )

    @property
    def single_samples_go_on(self) -> bool:
        """Whether all epochs are made where single samples are to be forgotten."""
        return False
