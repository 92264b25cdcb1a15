"""The one training loop of all methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from forgetkit.engine.place import Place
from forgetkit.engine.run import Run
from forgetkit.engine.steps import chunks, pairs
from forgetkit.errors import DataError, UnlearningFailed
from forgetkit.method import Pair
from forgetkit.recipe import StopsEarly, Trained
from forgetkit.types import Batch, SampleSet


@dataclass
class Outcome:
    """What the loop reports.

    Args:
        stopped_because: one sentence.
        history: one record an epoch, plain numbers.
        clipped: steps whose gradient norm was scaled down.
    """

    stopped_because: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    clipped: int = 0


class Loop:
    """Trains the editable parameters on a method's loss until a stop rule says so.

    Args:
        method: its hyper-parameters hold the recipe.
        run: what the method sees.
        place: device, precision, processes.
        update_mode: sets train or eval mode module by module.
        forget_accuracy: measures D_f in eval mode.
        watch: called at the end of each epoch; returns numbers for the history.
        target: forget accuracy at which the run is done, or ``None`` for no such rule.
        accumulate: parts that a batch is cut into to save memory.
        refresh: whether features must be extracted anew each epoch, because the loader draws
            its augmentation anew.
        tick: called once a step, for a progress bar.
    """

    def __init__(
        self,
        method: Trained,
        run: Run,
        place: Place,
        *,
        update_mode: Callable[[], None],
        forget_accuracy: Callable[[], float],
        watch: Callable[[], dict[str, float]],
        target: float | None,
        accumulate: int = 1,
        refresh: bool = False,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._method = method
        self._run = run
        self._place = place
        self._update_mode = update_mode
        self._forget_accuracy = forget_accuracy
        self._watch = watch
        self._target = target
        self._check_every = method.check_every if isinstance(method, StopsEarly) else None
        self._accumulate = accumulate
        self._refresh = refresh
        self._tick = tick
        self._parameters = list(run.parameters.values())
        self._optimizer = _optimizer(method, self._parameters)
        self._scaler = place.scaler()
        self._schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self._masks: Mapping[str, Tensor] = {}
        self._outcome = Outcome()
        self._dropped: list[float] = []

    def train(self) -> Outcome:
        """Run all epochs, or until the forget accuracy reaches its target."""
        method, run = self._method, self._run
        self._masks = {
            name: mask.to(run.parameters[name].device) for name, mask in method.mask(run).items()
        }
        for epoch in range(method.epochs):
            run.epoch = epoch
            start = time.perf_counter()
            if self._refresh and epoch > 0:
                run.forget_features()
            with torch.no_grad(), run.eval_mode():
                replaced = method.start_epoch(run)
            if replaced is not None:
                run.state = replaced
            losses, reached = self._epoch()
            row = {"epoch": float(epoch + 1), "steps": float(run.step), **losses}
            row["seconds"] = time.perf_counter() - start
            row |= self._watch()
            self._outcome.history.append(row)
            if reached or (self._target is not None and row["forget_accuracy"] <= self._target):
                self._outcome.stopped_because = (
                    f"forget accuracy {100 * row['forget_accuracy']:.2f} % reached its target of "
                    f"{100 * (self._target or 0.0):.2f} % after {run.step} steps"
                )
                return self._outcome
        self._outcome.stopped_because = f"all {method.epochs} epochs done ({run.step} steps)"
        return self._outcome

    def _epoch(self) -> tuple[dict[str, float], bool]:
        method, run = self._method, self._run
        sums: dict[str, Tensor] = {}
        count = 0
        forget = run.forget
        retain = None if run.images.retain is None or method.steps == "forget" else run.retain
        self._update_mode()
        for pair in pairs(
            method.steps,
            forget,
            retain,
            batch_size=method.batch_size,
            generator=run.generator,
            shard=self._place.shard,
        ):
            if self._schedule is None and method.schedule == "cosine":
                self._schedule = self._cosine(forget, retain)
            for name, value in self._step(pair).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            count += 1
            run.step += 1
            self._tick()
            if (
                self._target is not None
                and self._check_every is not None
                and run.step % self._check_every == 0
            ):
                if self._forget_accuracy() <= self._target:
                    return _means(sums, count), True
                self._update_mode()
        return _means(sums, count), False

    def _step(self, pair: Pair) -> dict[str, Tensor]:
        """Make one optimiser step; the gradient is the mean over the batch of all processes."""
        self._optimizer.zero_grad(set_to_none=True)
        weights = {"forget": self._weight(pair.forget), "retain": self._weight(pair.retain)}
        pair = Pair(
            self._never_empty(pair.forget, "forget"), self._never_empty(pair.retain, "retain")
        )
        seen: dict[str, Tensor] = {}
        for some, forget_share, retain_share in chunks(pair, self._accumulate):
            some = Pair(self._ready(some.forget), self._ready(some.retain))
            terms = self._method.loss(some, self._run)
            scale = {
                "forget": weights["forget"] * forget_share,
                "retain": weights["retain"] * retain_share,
            }
            scaled = {name: term * scale[_set_of(name, some)] for name, term in terms.items()}
            loss = torch.stack(list(scaled.values())).sum()
            self._finite(scaled)
            self._scaler.scale(loss).backward()
            for name, value in scaled.items():
                seen[name] = seen.get(name, torch.zeros_like(value)) + value.detach()
        self._apply()
        return seen

    def _weight(self, batch: Batch | None) -> float:
        """Return what turns this process's mean into its part of the mean over processes."""
        if batch is None or self._place.world == 1:
            return 1.0
        return len(batch) * self._place.world / batch.total

    def _never_empty(self, batch: Batch | None, which: str) -> Batch | None:
        """Replace an empty share by one sample, whose weight is zero."""
        if batch is None or len(batch) > 0:
            return batch
        samples = self._run.forget if which == "forget" else self._run.retain
        return next(iter(samples.take(torch.tensor([0])).batches(1)))

    def _ready(self, batch: Batch | None) -> Batch | None:
        """Put labels on the device; inputs follow when the model is called."""
        if batch is None:
            return None
        labels = batch.labels.to(self._place.device, non_blocking=True)
        return Batch(batch.inputs, labels, batch.index, batch.total)

    def _finite(self, terms: Mapping[str, Tensor]) -> None:
        values = torch.stack([term.detach().float() for term in terms.values()])
        if bool(torch.isfinite(values).all()):
            return
        shown = ", ".join(f"{name} = {float(term.detach()):g}" for name, term in terms.items())
        raise UnlearningFailed(
            f"{self._method.card.slug}: expected a finite loss, found {shown} in epoch "
            f"{self._run.epoch + 1}, step {self._run.step + 1}; lower lr "
            f"(now {self._method.lr:g}) or set max_norm, and check the images for NaN"
        )

    def _apply(self) -> None:
        self._scaler.unscale_(self._optimizer)
        self._place.mean_gradients(self._parameters)
        if self._method.max_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, self._method.max_norm)
            self._outcome.clipped += int(norm > self._method.max_norm)
        parameters = self._run.parameters
        kept = {name: parameters[name].detach().clone() for name in self._masks}
        for name, mask in self._masks.items():
            grad = parameters[name].grad
            if grad is not None:
                grad.mul_(mask)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with torch.no_grad():  # momentum and weight decay move masked weights inside the step
            for name, mask in self._masks.items():
                parameters[name].copy_(torch.where(mask.bool(), parameters[name], kept[name]))
        if self._schedule is not None:
            self._schedule.step()

    def _cosine(
        self, forget: SampleSet, retain: SampleSet | None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        per_epoch = count_steps(self._method, forget, retain)
        return torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimizer, max(self._method.epochs * per_epoch, 1)
        )


def count_steps(method: Trained, forget: SampleSet, retain: SampleSet | None) -> int:
    """Return the optimiser steps of one epoch."""
    size = method.batch_size or forget.batch_size
    rows = {
        "forget": len(forget),
        "retain": len(retain) if retain is not None else 0,
        "both": max(len(forget), len(retain) if retain is not None else 0),
    }[method.steps]
    return int(-(-rows // size))


def _means(sums: Mapping[str, Tensor], count: int) -> dict[str, float]:
    means = {name: float(value) / max(count, 1) for name, value in sums.items()}
    return {**{f"loss_{name}": value for name, value in means.items()}, "loss": sum(means.values())}


def _set_of(name: str, pair: Pair) -> Literal["forget", "retain"]:
    """Return the set whose samples a term averages: named by its prefix, else the one present."""
    if pair.forget is None or (name.startswith("retain") and pair.retain is not None):
        return "retain"
    return "forget"


def _optimizer(method: Trained, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if method.lr is None:
        raise DataError(
            f"{method.card.slug}: expected lr to be set before training, found None; pass lr="
        )
    if method.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, method.lr, method.momentum, weight_decay=method.weight_decay
        )
    kind = torch.optim.Adam if method.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, method.lr, (method.momentum, 0.999), weight_decay=method.weight_decay)
