"""Amnesiac unlearning: take back the logged training steps that saw the samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import Self

from forgetkit.errors import BadHyperparameter, DataError
from forgetkit.fields import artefact, bounded, choice, positions
from forgetkit.log_header import weights_digest
from forgetkit.logged_tensors import logged_tensors
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Facts, Need, Pair, register
from forgetkit.per_sample import wide_type
from forgetkit.recipe import FullNetwork
from forgetkit.training_log import practise
from forgetkit.types import Terms
from forgetkit.written_log import WrittenLog

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Amnesiac(FullNetwork):
    """Subtract what the training steps on the samples changed, then repair on D_r.

        theta = theta - sum_b Delta_b  over the logged steps b whose batch held a sample of D_f,
        Delta_b = theta_after - theta_before;  then  L = CE(z, y) over D_r

    It needs the log that ``forgetkit.training_log.AmnesiacLog`` wrote during training, and works
    for few samples: for a whole class nearly every step is taken back, which leaves the initial
    weights. A step is taken back once: a further request names the samples of the earlier ones in
    ``forgotten``; without, a model that is not as training left it is refused. Other works call
    training on random labels "amnesiac"; that is ``random_label``.

    Source: Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021,
        https://arxiv.org/abs/2010.10981.

    Differences: buffers of normalisation layers are taken back too, where the published code keeps
        them (a variance that would not stay positive is left as it is); the sum is formed in
        float64. ``epochs=0`` repairs nothing and needs D_f alone. The repair trains with dropout.
    """

    replaces: ClassVar[bool] = True

    card: ClassVar[Card] = Card(
        slug="amnesiac",
        title="Amnesiac unlearning",
        goals=("instances",),
        needs=("forget", "retain"),
        edits="all",
        steps="retain",
        cost="reading the log, and 1 FB over D_r",
        source="Graves et al. 2021, AAAI",
        link="https://arxiv.org/abs/2010.10981",
        about="Takes back the logged training steps that saw the samples, then repairs.",
        dropout=True,
        rank={"instances": 1},
        toy={"lr": 0.01, "epochs": 1},
        rehearse=practise,
    )

    log: str | None = artefact("folder that AmnesiacLog wrote during training")
    forgotten: tuple[int, ...] | None = positions(
        "samples whose steps this model has had taken back already, () for none; None demands the "
        "model as its training left it"
    )
    epochs: int = bounded(1, 0, 1000, "passes over D_r after the subtraction; 0 repairs nothing")
    lr: float | None = bounded(
        None, 0.0, 10.0, "step size of the repair; None takes that of the last logged step"
    )
    bn: str = choice("train", ("frozen", "train"), "D_r is what the statistics should describe")

    @property
    def needs(self) -> tuple[Need, ...]:
        """D_r is read by the repair alone."""
        return ("forget", "retain") if self.epochs else ("forget",)

    def tuned(self, facts: Facts) -> Self:  # noqa: ARG002  the log says it, not the data
        """Fill in the learning rate of the last logged step."""
        if self.lr is not None:
            return self
        steps = self._written().steps
        if not steps and self.epochs == 0:
            return replace(self, lr=0.0)  # nothing is repaired
        if not steps:
            raise DataError(
                f"amnesiac: expected a log with steps in it, found none in {self.log!r}; pass lr= "
                "to repair only"
            )
        if steps[-1].lr == 0.0 and self.epochs > 0:
            raise DataError(
                f"amnesiac: expected a step size above 0 for the repair, found that of the last "
                f"step in {self.log!r}, where the schedule had come down to 0; pass lr=, or "
                "epochs=0 to repair nothing"
            )
        return replace(self, lr=steps[-1].lr)

    def begin(self, run: Run) -> None:
        """Subtract the logged changes of every step that saw a sample of D_f."""
        written = self._written()
        parameters, buffers = logged_tensors(run.model)
        live = {**parameters, **buffers}
        for name, shape in written.shapes.items():
            found = live.get(name)
            if found is None or tuple(found.shape) != shape:
                here = "absent" if found is None else str(tuple(found.shape))
                raise DataError(
                    f"log={self.log!r}: expected a log of this model, found {name} of shape "
                    f"{shape}, which is {here} in it; pass the log of this model's own training"
                )
        wanted = written.located(run.images.places)
        earlier = self._earlier(written, run)
        if self.epochs and not earlier <= set(wanted):
            run.log(
                "amnesiac: where the loader holds samples forgotten earlier, the repair learns "
                "them again; name them in .instances() as well as in forgotten="
            )
        done = {step.file for step in written.covering(earlier)}
        steps = [step for step in written.covering(wanted) if step.file not in done]
        editable = {id(tensor) for tensor in run.parameters.values()}
        for name, change in written.total(steps).items():
            tensor = live[name]
            if name in parameters and id(tensor) not in editable:
                raise DataError(
                    f"log={self.log!r}: expected that all weights may change that the steps to "
                    f"take back have moved, found {name} frozen; call requires_grad_(True) on it"
                )
            wide = wide_type(tensor.device)
            taken = tensor.to(wide) - change.to(tensor.device, wide)
            if name.endswith("running_var"):  # a part of its changes may leave no variance at all
                taken = torch.where(taken > 0, taken, tensor)
            tensor.copy_(taken)
        already = f"; {len(done)} had been taken back earlier" if done else ""
        run.log(f"took back {len(steps)} of {len(written.steps)} logged steps{already}")

    def _earlier(self, written: WrittenLog, run: Run) -> set[int]:
        """Return the samples that were forgotten with this log before.

        Raises:
            DataError: what the settings say of them does not agree with the weights.
        """
        with run.own_precision():
            untouched = written.left is not None and written.left == weights_digest(run.model)
        if self.forgotten is None and not untouched:
            found = "other weights" if written.left else "a log that was not closed and cannot tell"
            raise DataError(
                f"log={self.log!r}: expected the model as its training left it, found {found}; "
                "name the samples that were forgotten with this log before in forgotten=[...], so "
                "that no step is taken back twice, or pass forgotten=() if there are none"
            )
        if self.forgotten and untouched:
            raise DataError(
                f"log={self.log!r}: expected a model from which the steps of "
                f"forgotten={list(self.forgotten)} were taken back, found it as its training left "
                "it; leave forgotten out, or load the model that the last request left"
            )
        return set(self.forgotten or ())

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy on retained samples."""
        if batch.retain is None:
            raise TypeError("amnesiac repairs on the retain set")
        return {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}

    def _written(self) -> WrittenLog:
        if self.log is None:
            raise BadHyperparameter(
                "amnesiac: expected log=, the folder that AmnesiacLog wrote while the model was "
                "trained, found none; without a log use a method for instances that needs none, "
                "such as those of `forgetkit methods --for instances`"
            )
        return WrittenLog(self.log)
