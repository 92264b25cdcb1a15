"""The one training loop of all methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from forgetkit.batch_count import batches_in
from forgetkit.engine.masks import element_masks
from forgetkit.engine.place import Place
from forgetkit.engine.resuming import Saved
from forgetkit.engine.run import Run
from forgetkit.engine.steps import chunks, larger, pairs
from forgetkit.errors import DataError, UnlearningFailed
from forgetkit.method import Method, Pair, Pass, Seen
from forgetkit.moving import sent
from forgetkit.progress import Bar, progress
from forgetkit.recipe import FullNetwork, Trained
from forgetkit.types import Batch, SampleSet

Sums: TypeAlias = dict[str, list[tuple[Tensor, int]]]
"""Terms of the loss by name: the value of each step, and the samples it is a mean over."""

_ADAM_EPS = 1e-8


@dataclass
class Outcome:
    """What the loop reports.

    Args:
        stopped_because: one sentence.
        history: one record an epoch, plain numbers.
        clipped: steps whose gradient norm was scaled down.
        made: steps of the optimiser; fewer than were tried where gradients overflow in fp16.
    """

    stopped_because: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    clipped: int = 0
    made: int = 0


class Loop:
    """Trains the editable parameters on a method's loss until a stop rule says so.

    Args:
        method: its hyper-parameters hold the recipe.
        run: what the method sees.
        place: device, precision, processes.
        update_mode: sets train or eval mode module by module.
        watch: called at the end of each epoch; returns numbers for the history.
        accumulate: parts that a batch is cut into to save memory.
        refresh: whether features must be extracted anew each epoch, because the loader draws
            its augmentation anew.
        begun: what an earlier loop of the same run left, to go on from.
        keep: called before the first epoch and after each with what another loop could go on from.
    """

    def __init__(
        self,
        method: Trained,
        run: Run,
        place: Place,
        *,
        update_mode: Callable[[], None],
        watch: Callable[[], dict[str, float]],
        accumulate: int = 1,
        refresh: bool = False,
        begun: Saved | None = None,
        keep: Callable[[Saved], None] | None = None,
    ) -> None:
        self._begun = begun
        self._keep = keep
        self._method = method
        self._run = run
        self._place = place
        self._update_mode = update_mode
        self._watch = watch
        self._check_every = method.check_interval(run)
        self._accumulate = accumulate
        self._refresh = refresh
        self._parameters = [p for p in run.parameters.values() if p.requires_grad]
        self._extra = list(run.extra.values())
        self._optimizer = self._new_optimizer()
        self._scaler = place.scaler()
        self._first_step, self._steps_an_epoch = 0, 1
        self._rate = 0.0
        self._masks: Mapping[str, Tensor] = {}
        self._outcome = Outcome()
        self._broken = ""
        self._clipped: int | Tensor = 0  # read at the end: a step does not wait for it
        self._reading: tuple[SampleSet, SampleSet | None] = (run.forget, None)

    def train(self) -> Outcome:
        """Run all epochs, or until a stop rule says so."""
        method, run = self._method, self._run
        masks = element_masks(method, run) if self._begun is None else self._go_on(self._begun)
        self._masks = {name: mask.to(run.parameters[name].device) for name, mask in masks.items()}
        run.masks = self._masks
        with progress(method.card.slug) as bar:
            self._outcome.stopped_because = self._epochs(bar)
        self._outcome.clipped = int(self._clipped)
        return self._outcome

    def _epochs(self, bar: Bar) -> str:
        """Train epoch by epoch; return why that ended."""
        method, run = self._method, self._run
        first = 0 if self._begun is None else self._begun.epochs
        for _ in range(run.step):
            bar.advance()
        if self._keep is not None and self._begun is None:
            self._keep(self._kept(0))
        for epoch in range(first, method.epochs):
            run.epoch = epoch
            why = self._epoch(bar)
            if why is not None:
                return why
            if self._keep is not None:
                self._keep(self._kept(epoch + 1))
        return f"all {method.epochs} epochs done ({run.step} steps)"

    def _epoch(self, bar: Bar) -> str | None:
        """Train one epoch and record it; return why the run ends here, if it does."""
        method, run = self._method, self._run
        start = time.perf_counter()
        if self._refresh and run.epoch > 0:
            run.forget_features()
        with torch.no_grad(), run.eval_mode():
            replaced = method.start_epoch(run)
        if replaced is not None:
            run.state = replaced
        passes = method.passes(run)
        self._first_step = run.step
        self._steps_an_epoch = max(sum(self._count(one) for one in passes), 1)
        # what the coming epochs will hold is not known yet: a method may leave passes out
        bar.expect(run.step + (method.epochs - run.epoch) * self._steps_an_epoch)
        sums: Sums = {}
        why: str | None = None
        for one in passes:
            run.phase = one.name
            why = self._pass(one, sums, bar)
            if why is None:
                with torch.no_grad():
                    why = method.passed(run)
            if why is not None:
                break
        row = {"epoch": float(run.epoch + 1), "steps": float(run.step), **self._means(sums)}
        if isinstance(method, FullNetwork):
            row["bn_train"] = float(method.bn == "train")
        row["seconds"] = time.perf_counter() - start
        row |= self._watch()
        row |= {name: float(number) for name, number in run.counts.items()}
        row |= self._summed(run.tallies)
        run.counts, run.tallies = {}, {}
        self._outcome.history.append(row)
        if why is not None:
            return why
        wrong = 1.0 - row["new_label_accuracy"] if "new_label_accuracy" in row else None
        seen = Seen(
            forget_accuracy=row["forget_accuracy"] if wrong is None else wrong,
            retain_accuracy=row.get("retain_accuracy"),
            epoch_ended=True,
        )
        with torch.no_grad():
            return method.checked(seen, run)

    def _kept(self, epochs: int) -> Saved:
        """Return what another loop needs to go on after an epoch."""
        optimizer = self._optimizer.state_dict()["state"]
        tensors = {f"mask/{name}": mask for name, mask in self._masks.items()}
        numbers: dict[str, dict[str, object]] = {}
        for place, values in optimizer.items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{place}/{name}"] = value
                else:
                    numbers.setdefault(str(place), {})[name] = value
        record = {
            "optimizer": numbers,
            "scaler": self._scaler.state_dict(),
            "clipped": int(self._clipped),
            "made": self._outcome.made,
            "history": self._outcome.history,
        }
        return Saved(epochs, tensors, record)

    def _go_on(self, begun: Saved) -> dict[str, Tensor]:
        """Take over what another loop has left; return its masks."""
        record = begun.record
        state: dict[int, dict[str, object]] = {
            int(place): dict(values) for place, values in record["optimizer"].items()
        }
        masks: dict[str, Tensor] = {}
        for name, tensor in begun.tensors.items():
            word, rest = name.split("/", 1)
            if word == "mask":
                masks[rest] = tensor
            else:
                place, value = rest.split("/", 1)
                state.setdefault(int(place), {})[value] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._scaler.load_state_dict(record["scaler"])
        self._clipped = record["clipped"]
        self._outcome.made, self._outcome.history = record["made"], list(record["history"])
        return masks

    def _pass(self, one: Pass, sums: Sums, bar: Bar) -> str | None:
        """Train on the batches of one pass; return why the run ends within it, if it does."""
        self._reading = self._sets(one)
        self._prepare_optimizer(one)
        self._update_mode()
        if one.whole:
            for name, value in self._whole_step(one).items():
                sums.setdefault(name, []).append((value, 1))
            return self._stepped(bar)
        for number, pair in enumerate(self._pairs(one)):
            if one.limit is not None and number >= one.limit:
                break
            self._optimizer.zero_grad(set_to_none=True)
            for name, value in self._backward(pair).items():
                batch = pair.forget if _set_of(name, pair) == "forget" else pair.retain
                count = 1 if batch is None else batch.total
                sums.setdefault(name, []).append((value, count))
            self._apply()
            why = self._stepped(bar)
            if why is not None:
                return why
        return None

    def _means(self, sums: Sums) -> dict[str, float]:
        """Return the mean of each term over the samples of its set in all processes, and their sum.

        What a process has of a step is weighted already, so that the mean over processes is it.
        """
        means = {}
        for name, steps in sums.items():
            values, counts = zip(*steps, strict=True)
            weights = torch.tensor(counts, dtype=torch.float64)
            total = self._place.total(torch.stack(values)).cpu().double() / self._place.world
            means[name] = float(total @ weights / weights.sum())
        terms = {f"loss_{name}": value for name, value in means.items()}
        return {**terms, "loss": sum(means.values())}

    def _summed(self, tallies: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Return tallies of the epoch, summed over processes, which all have the same names."""
        names = sorted(tallies)
        own = torch.tensor([float(tallies[name]) for name in names], device=self._place.device)
        return dict(zip(names, self._place.total(own).tolist(), strict=True)) if names else {}

    def _stepped(self, bar: Bar) -> str | None:
        """Count a step; check the stop rules when it is time to."""
        method, run = self._method, self._run
        run.step += 1
        bar.advance()
        if self._check_every is None or run.step % self._check_every:
            return None
        if run.target is None and type(method).checked is Method.checked:
            return None
        measured = run.forget_accuracy() if method.heeds_forget_accuracy else math.nan
        seen = Seen(measured, None, epoch_ended=False)
        with torch.no_grad():
            why = method.checked(seen, run)
        self._update_mode()
        return why

    def _pairs(self, one: Pass) -> Iterator[Pair]:
        forget, retain = self._reading
        return pairs(
            one.steps,
            forget,
            retain,
            batch_size=one.batch_size or self._method.batch_size,
            other_batch_size=one.other_batch_size,
            once=one.once,
            generator=self._run.generator if one.shuffle else None,
            shard=self._place.shard,
        )

    def _sets(self, one: Pass) -> tuple[SampleSet, SampleSet | None]:
        run = self._run
        retain = one.retain
        if retain is None and one.steps != "forget" and run.images.retain is not None:
            retain = run.retain
        return one.forget or run.forget, retain

    def _count(self, one: Pass) -> int:
        """Return the optimiser steps of a pass."""
        if one.whole:
            return 1
        forget, retain = self._sets(one)
        drives = one.once or larger(forget, retain) if one.steps == "both" else one.steps
        rows = len(forget) if drives == "forget" else len(retain or ())
        size = one.batch_size or self._method.batch_size or forget.batch_size
        count = batches_in(rows, size)
        return count if one.limit is None else min(count, one.limit)

    def _prepare_optimizer(self, one: Pass) -> None:
        """Set the step size of a pass, and start momentum anew where it says so."""
        if one.fresh_optimizer:
            self._optimizer = self._new_optimizer()
        rate = self._method.rate(self._run)
        if rate is None:
            rate = one.lr if one.lr is not None else self._method.lr
        self._rate = float(rate or 0.0)
        for group in self._optimizer.param_groups:
            if "eps" in group:
                group["eps"] = one.eps if one.eps is not None else _ADAM_EPS
        self._set_rate()

    def _set_rate(self) -> None:
        factor = 1.0
        if self._method.schedule == "cosine":
            steps = self._steps_an_epoch  # of this epoch: others may have fewer or more passes
            done = self._run.epoch * steps + self._run.step - self._first_step
            share = done / (self._method.epochs * steps)
            factor = (1.0 + math.cos(math.pi * min(share, 1.0))) / 2.0
        scales = (1.0, self._method.extra_rate)
        for group, scale in zip(self._optimizer.param_groups, scales, strict=False):
            group["lr"] = self._rate * factor * scale

    def _whole_step(self, one: Pass) -> dict[str, Tensor]:
        """Make one step on the mean gradient over the driving set, batch by batch."""
        forget, retain = self._reading
        size = len(forget) if one.steps == "forget" or retain is None else len(retain)
        self._optimizer.zero_grad(set_to_none=True)
        seen: dict[str, Tensor] = {}
        for pair in self._pairs(one):
            driving = pair.forget if one.steps == "forget" else pair.retain
            share = 0.0 if driving is None else driving.total / size
            for name, value in self._backward(pair, share).items():
                seen[name] = seen.get(name, torch.zeros_like(value)) + value
        self._apply()
        return seen

    def _backward(self, pair: Pair, share: float = 1.0) -> dict[str, Tensor]:
        """Add ``share`` times the gradient of a pair: the mean over the batch of all processes."""
        weights = {"forget": self._weight(pair.forget), "retain": self._weight(pair.retain)}
        forget, retain = self._reading
        pair = Pair(_never_empty(pair.forget, forget), _never_empty(pair.retain, retain))
        seen: dict[str, Tensor] = {}
        for some, forget_share, retain_share in chunks(pair, self._accumulate):
            some = Pair(self._ready(some.forget), self._ready(some.retain))
            terms = self._method.loss(some, self._run)
            scale = {
                "forget": weights["forget"] * forget_share * share,
                "retain": weights["retain"] * retain_share * share,
            }
            scaled = {name: term * scale[_set_of(name, some)] for name, term in terms.items()}
            loss = torch.stack(list(scaled.values())).sum()
            self._finite(scaled)
            self._scaler.scale(loss).backward()
            for name, value in scaled.items():
                seen[name] = seen.get(name, torch.zeros_like(value)) + value.detach()
        return seen

    def _weight(self, batch: Batch | None) -> float:
        """Return what turns this process's mean into its part of the mean over processes."""
        if batch is None or self._place.world == 1:
            return 1.0
        return len(batch) * self._place.world / batch.total

    def _ready(self, batch: Batch | None) -> Batch | None:
        """Put labels on the device; inputs follow when the model is called."""
        if batch is None:
            return None
        labels = sent(batch.labels, self._place.device)
        return Batch(batch.inputs, labels, batch.index, batch.total)

    def _finite(self, terms: Mapping[str, Tensor]) -> None:
        values = torch.stack([term.detach().float() for term in terms.values()])
        if bool(torch.isfinite(values).all()):
            return
        shown = ", ".join(f"{name} = {float(term.detach()):g}" for name, term in terms.items())
        self._broken = (
            f"{self._method.card.slug}: expected a finite loss, found {shown} in epoch "
            f"{self._run.epoch + 1}, step {self._run.step + 1}; lower lr "
            f"(now {self._method.lr:g}) or set max_norm, and check the images for NaN"
        )
        if self._place.world == 1:
            raise UnlearningFailed(self._broken)

    def _all_finite(self) -> None:
        """Stop in all processes where the loss of one is not finite: they would wait for it."""
        if self._place.anywhere(bool(self._broken)):
            raise UnlearningFailed(
                self._broken
                or f"{self._method.card.slug}: expected a finite loss, found none in another "
                f"process in epoch {self._run.epoch + 1}, step {self._run.step + 1}; its own "
                "message says what to do"
            )

    def _apply(self) -> None:
        """Step on the gradients that were added up, averaged over processes."""
        self._all_finite()
        self._set_rate()
        trained = [*self._parameters, *self._extra]
        self._place.mean_gradients(trained)  # before the look for overflows: all see the same
        self._scaler.unscale_(self._optimizer)
        with torch.no_grad():
            self._method.gradients(self._run)
        parameters = self._run.parameters
        for name, mask in self._masks.items():
            grad = parameters[name].grad
            if grad is not None:
                grad.mul_(mask)
        if self._method.max_norm is not None:  # of what moves: the mask comes first
            norm = nn.utils.clip_grad_norm_(trained, self._method.max_norm)
            self._clipped = self._clipped + ((norm > self._method.max_norm) & norm.isfinite())
        kept = {name: parameters[name].detach().clone() for name in self._masks}
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with torch.no_grad():  # momentum and weight decay move masked weights inside the step
            for name, mask in self._masks.items():
                parameters[name].copy_(torch.where(mask.bool(), parameters[name], kept[name]))

    def _new_optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": self._parameters}]
        if self._extra:
            groups.append({"params": self._extra, "weight_decay": 0.0})
        optimizer = _optimizer(self._method, groups)
        optimizer.register_step_post_hook(self._made)
        return optimizer

    def _made(self, *_: object) -> None:
        self._outcome.made += 1


def _never_empty(batch: Batch | None, samples: SampleSet | None) -> Batch | None:
    """Replace an empty share by one sample, whose weight is zero."""
    if batch is None or len(batch) > 0 or samples is None:
        return batch
    return next(iter(samples.take(torch.tensor([0])).batches(1)))


def _set_of(name: str, pair: Pair) -> Literal["forget", "retain"]:
    """Return the set whose samples a term averages: named by its prefix, else the one present."""
    if pair.forget is None or (name.startswith("retain") and pair.retain is not None):
        return "retain"
    return "forget"


def _optimizer(method: Trained, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
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
