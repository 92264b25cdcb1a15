"""SULI: self-unlearning in layers of D_f, from the most to the least uncertain samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from forgetkit.fields import bounded, choice, flag
from forgetkit.losses import accuracy as hits
from forgetkit.masked_targets import current_divergence, entropy, in_layers, target_divergence
from forgetkit.method import Card, Facts, Pair, Pass, Seen, State, register
from forgetkit.moving import sent
from forgetkit.soft_targets import SoftTargets
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

_KEPT = "kept/"
"""Before the names of the weights that a rejected layer is undone to."""


@register
@dataclass(frozen=True, kw_only=True)
class SULI(SoftTargets):
    """Cut D_f into layers by entropy; make one step on each layer, with new optimiser state.

        L_i = KL(P' || softmax(z / T)) over layer D_i,   P' = SPA(p_teacher) as in SU

    ``teacher="original"`` takes p at the weights before the run, ``"current"`` at the start of
    each layer. In the first step of a layer the current teacher is the student itself and the
    other classes cancel: L_i = -log(1 - p_y) for epsilon = 0, so no second forward is needed.
    After a layer the forget accuracy is measured on all of D_f; a layer of a class goal that made
    it rise is undone.

    Source: Lyu et al., "Fine-Grained and Efficient Self-Unlearning with Layered Iteration",
        definition of SPA and Algorithm 1, https://github.com/Hongyi-Lyu-MQ/SULI.

    Differences: the paper's SPA has the original model as teacher, its Algorithm 1 and code the
        current one, which costs retain accuracy: original by default. The paper cuts D_f in two,
        the code into 500 samples a layer: 10 layers for classes, 2 for samples. One step a layer,
        as in the code; the paper writes an argmin (``inner_steps``). Normalisation statistics are
        frozen; ``preset="code"`` moves them once a step, the code twice. At most 40 sweeps, where
        both have 10. The paper prints no step sizes: its presets have those of the code. When all
        layers of a sweep in a row were undone, the next one is kept: with a fixed teacher and new
        optimiser state the sweeps would be the same for ever.
    """

    card: ClassVar[Card] = Card(
        slug="suli",
        title="SULI (self-unlearning with layered iteration)",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="1 F over D_f, then a sweep costs FB + layers x F; 1 to 40 sweeps",
        source="Lyu et al. 2025, IJCAI",
        link="https://github.com/Hongyi-Lyu-MQ/SULI",
        about="Self-unlearning in layers, from the most to the least uncertain forget samples.",
        rank={"instances": 5},
        toy={"lr": 0.003, "layers": 3, "epochs": 10},
        probe={
            "": {"lr": 0.0003, "layers": 3},
            "batch_size": {"lr": 0.0003, "layers": 3, "batch_size": 8},
            "check_every": {"lr": 0.003, "layers": 1, "inner_steps": 40, "epochs": 1},
            "chunk_size": {"lr": 0.0003, "chunk_size": 20},
            "max_steps": {"lr": 0.0003, "layers": 3, "max_steps": 2},
            "momentum": {"lr": 0.0003, "layers": 3, "inner_steps": 3},
            "optimizer": {"lr": 0.0003, "layers": 3, "weight_decay": 0.1},
            "reference": {"lr": 0.001, "layers": 3, "epochs": 10, "reference": 0.9},
            "removed": {"lr": 0.0003, "layers": 3, "classes": (2, 3)},
            "rollback": {"lr": 0.005, "layers": 20, "epsilon": 0.4},
        },
        presets={
            "paper": {
                "lr": 1e-4, "layers": 2, "epochs": 10, "teacher": "original", "rollback": False,
                "removed": "label",
            },
            "paper_instances": {
                "lr": 8e-5, "layers": 2, "epochs": 10, "teacher": "original", "rollback": False,
                "removed": "label",
            },
            "code": {
                "lr": 1e-4, "chunk_size": 500, "batch_size": 500, "epochs": 10,
                "teacher": "current", "bn": "train", "max_steps": 10**6,
            },
            "code_instances": {
                "lr": 8e-5, "chunk_size": 32, "epochs": 10, "teacher": "current", "bn": "train",
                "removed": "argmax", "max_steps": 10**6,
            },
        },
    )  # fmt: skip

    layers: int | None = bounded(
        None, 1, 100000, "parts of D_f; t; None is 10 for classes and 2 for samples"
    )
    chunk_size: int | None = bounded(None, 1, 10**9, "samples a layer, instead of layers")
    teacher: str = choice(
        "original", ("original", "current"), "whose prediction is adjusted: w_0 or w_{i-1}"
    )
    inner_steps: int = bounded(1, 1, 10000, "steps a layer; the teacher is fixed at its start")
    rollback: bool = flag(default=True, about="undo a layer that made a class goal's accuracy rise")
    max_steps: int = bounded(400, 1, 10**6, "largest number of steps of the run")
    epochs: int = bounded(40, 1, 1000, "largest number of sweeps over the layers; E")
    lr: float | None = bounded(
        None,
        0.0,
        10.0,
        "step size; None is 1e-4 for classes and 8e-5 for samples, a tenth for a transformer",
    )
    optimizer: str = choice("adam", ("sgd", "adam", "adamw"), "the optimiser, new in each layer")
    batch_size: int | None = bounded(256, 1, 65536, "samples at once; a step adds up its layer's")
    check_every: int | None = bounded(
        None, 1, 100000, "steps between further checks within a layer; all layers end with one"
    )

    @property
    def further_forwards(self) -> float:
        """A look at D_f after each layer, one of which every epoch has."""
        return (self.layers or 1) - 1.0

    def tuned(self, facts: Facts) -> Self:
        """Fill in the published step size and number of layers."""
        single = facts.goal == "instances"
        lr = self.lr
        if lr is None:
            lr = (8e-5 if single else 1e-4) * (0.1 if facts.transformer else 1.0)
        return replace(self, lr=lr, layers=self.layers or (2 if single else 10))

    def setup(self, run: Run) -> State:
        """Measure the entropy of each sample, (N_f,), and its target under the original weights."""
        self.aim(run)
        logits = run.predictions(run.forget)
        state = {} if run.random_inputs else dict(self.fixed(logits, run))
        if self.teacher == "current":
            state["targets"] = torch.zeros_like(logits)  # each layer writes its own
        right = hits(logits, run.forget.labels.to(logits.device)).cpu()
        known = float(right.double().mean())  # rounded as later looks are: equal is not a rise
        return {**state, "entropy": entropy(logits), **self._accepted(known, run)}

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return a sweep: one step on each layer, or several, with new optimiser state."""
        layers = self._layers(run)
        return [
            Pass(
                "forget",
                name=f"layer {number} of {len(layers)}",
                forget=run.rows(run.forget, rows),
                whole=True,
                shuffle=False,
                fresh_optimizer=step == 0,
            )
            for number, rows in enumerate(layers, start=1)
            for step in range(self.inner_steps)
        ]

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the divergence from the adjusted prediction of the teacher."""
        forget = batch.forget
        if forget is None:
            raise TypeError("suli steps over the forget set")
        logits = run.logits(forget)
        if self.teacher == "current" and run.step % self.inner_steps == 0:
            # A layer's first step: its own logits are the teacher's, whose targets stay for the
            # steps that follow; the divergence from them has a closed form.
            own = logits.detach()
            targets = run.state["targets"]
            targets[sent(forget.index, targets.device)] = self.targets(own, forget.labels, run)
            blocked = self.blocked(own, forget.labels, run)
            own_loss = current_divergence(
                logits, blocked, epsilon=self.epsilon, temperature=self.temperature
            )
            return {"forget": own_loss}
        target = self.taught(forget, run)
        return {"forget": target_divergence(logits, target, self.temperature)}

    def passed(self, run: Run) -> str | None:
        """After a layer: undo it if it made a class goal's accuracy rise; see whether to stop."""
        if run.step % self.inner_steps == 0:
            accuracy, undone = run.forget_accuracy(), int(run.state["undone"])
            rose = self._rolls_back(run) and accuracy > float(run.state["accepted"])
            # A sweep that was undone as a whole would repeat itself for ever: then keep one layer.
            if rose and undone < len(self._layers(run)):
                kept = {
                    n.removeprefix(_KEPT): t for n, t in run.state.items() if n.startswith(_KEPT)
                }
                run.restore(kept)
                run.state = {**run.state, "undone": torch.tensor(undone + 1)}
                run.count("rejected_layers", run.counts.get("rejected_layers", 0.0) + 1.0)
            else:
                run.state = {**run.state, **self._accepted(accuracy, run)}
                why = self.checked(Seen(accuracy, None, epoch_ended=False), run)
                if why is not None:
                    return why
        return f"max_steps = {self.max_steps} steps done" if run.step >= self.max_steps else None

    def _layers(self, run: Run) -> list[Tensor]:
        return in_layers(run.state["entropy"], self.layers or 1, self.chunk_size)

    def _accepted(self, accuracy: float, run: Run) -> State:
        """Return what is remembered of the last accepted layer: accuracy, weights and buffers."""
        copies = run.snapshot() if self._rolls_back(run) else {}
        return {
            "accepted": torch.tensor(accuracy, dtype=torch.float64),
            "undone": torch.tensor(0),
            **{_KEPT + name: tensor for name, tensor in copies.items()},
        }

    def _rolls_back(self, run: Run) -> bool:
        return self.rollback and run.goal.kind == "classes"
