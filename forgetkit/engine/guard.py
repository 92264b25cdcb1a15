"""The guard: watch retained samples that the run does not train on, keep the best state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from forgetkit.errors import BadHyperparameter
from forgetkit.losses import unlearning_score
from forgetkit.types import SampleSet, Sets


@dataclass(frozen=True)
class Guard:
    """What a run may cost before it is undone.

    Watched are the retained samples of ``.validate``, else a slice of the retain set, on which then
    nothing trains. Where ``share`` comes to fewer than 16 samples none are held out: all retained
    ones are watched, ``most`` of them at most, and trained on. Of a loader that can be read only
    once, ``most`` of its retained samples are watched where the method reads none of them. A run is
    undone when their accuracy falls by more than ``budget``, and when nothing was forgotten: the
    accuracy on the forget set, if it was not 0, did not fall and its loss did not rise. Without any
    retained sample at hand the cost is not watched, and a note of the result says so.

    Args:
        budget: largest loss of accuracy on retained samples, as a fraction.
        share: part of the retain set that is held out and watched.
        most: largest number of samples that are watched.

    Raises:
        BadHyperparameter: a value is out of range.
    """

    budget: float = 0.10
    share: float = 0.10
    most: int = 1024

    def __post_init__(self) -> None:
        for name, value in (("budget", self.budget), ("share", self.share)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0.0 <= value <= 1.0:
                raise BadHyperparameter(
                    f"Guard({name}={value!r}): expected a fraction in [0, 1], found {value!r}; "
                    "0.10 means ten points of accuracy"
                )
        whole = isinstance(self.most, int) and not isinstance(self.most, bool)
        if not whole or self.most < 1:
            raise BadHyperparameter(
                f"Guard(most={self.most!r}): expected a whole number of samples, at least 1, found "
                f"{self.most!r}; pass guard=None to watch nothing"
            )


UNWATCHED = (
    "guard: no retained sample is at hand, so what this run costs was not watched; pass the whole "
    "training set, .retain(loader) or .validate(loader), or guard=None if that is meant"
)

FEWEST = 16
"""A share smaller than this measures nothing; then all retained samples may be watched."""


def hold_out(sets: Sets, guard: Guard, generator: Generator) -> tuple[Sets, SampleSet | None]:
    """Return the sets to work on and the slice of the retain set to watch, drawn at random.

    The slice is taken out of the retain set, so that nothing trains on it. Without a retain set it
    is what was kept of a stream for this alone.
    """
    if sets.retain is None:
        return sets, sets.spare
    count = len(sets.retain)
    share = int(count * guard.share)
    held = min(guard.most, share)
    order = torch.randperm(count, generator=generator)
    if share < FEWEST:
        return sets, sets.retain.take(order[: guard.most].sort().values)
    watched = sets.retain.take(order[:held].sort().values)
    rest = sets.retain.take(order[held:].sort().values)
    return replace(sets, retain=rest), watched


@dataclass(frozen=True)
class Reading:
    """What was seen of the model at one moment.

    Args:
        forget: accuracy on D_f.
        forget_loss: mean cross-entropy on D_f in nats.
        retain: accuracy on the watched samples, or ``None`` when nothing is watched.
    """

    forget: float
    forget_loss: float
    retain: float | None

    def score(self, target: float) -> float:
        """Return the unlearning score, with forgetting beyond the target not rewarded."""
        return unlearning_score(self.retain or 0.0, max(self.forget - target, 0.0))


class BestState:
    """Keeps a copy of the edited tensors from the best moment.

    A state that has forgotten within the budget beats every state that has not; among equals the
    unlearning score decides, so no rest of the class is traded for a little retain accuracy.

    Args:
        tensors: the live tensors that the run edits.
        start: the reading before the run.
        target: forget accuracy that counts as fully forgotten.
        budget: largest loss of retain accuracy, as a fraction.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], start: Reading, target: float, budget: float
    ) -> None:
        self._tensors = tensors
        self._target = target
        self._lowest = (start.retain or 0.0) - budget
        self._begun = start
        self._rank = self._ranked(start)
        self._kept: dict[str, Tensor] | None = None
        self._offered = self._at = 0
        self.reading = start

    def offer(self, reading: Reading) -> None:
        """Keep the weights after one more epoch if they score as well as the best so far."""
        rank = self._ranked(reading)
        self._offered += 1
        if rank >= self._rank:
            self._rank, self.reading, self._at = rank, reading, self._offered
            self._kept = {name: t.detach().clone() for name, t in self._tensors.items()}

    def drop(self) -> None:
        """Forget every state that was offered."""
        self._rank, self._kept = self._ranked(self._begun), None

    def aim(self, target: float) -> None:
        """Take another forget accuracy as fully forgotten, before any state is offered."""
        self._target = target
        self._rank = self._ranked(self._begun)

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the weights that are kept, none while no state beat the start."""
        return self._kept or {}

    def record(self) -> dict[str, Any]:
        """Return what ``load`` needs beside them, ready for JSON."""
        return {
            "kept": self._kept is not None, "offered": self._offered, "at": self._at,
            "target": self._target, "rank": self._rank, "reading": asdict(self.reading),
        }  # fmt: skip

    def load(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Take over what another one has kept."""
        self._kept = dict(tensors) if record["kept"] else None
        self._offered, self._at = record["offered"], record["at"]
        self._target = record["target"]
        done, score = record["rank"]
        self._rank, self.reading = (done, score), Reading(**record["reading"])

    def _ranked(self, reading: Reading) -> tuple[bool, float]:
        done = reading.forget <= self._target and (reading.retain or 0.0) >= self._lowest
        return done, reading.score(self._target)

    def restore(self) -> str | None:
        """Write the best state back, if any beat the start; say so if it is not the last one."""
        if self._kept is None:
            return None
        with torch.no_grad():
            for name, value in self._kept.items():
                self._tensors[name].copy_(value)
        if self._at == self._offered:
            return None
        return f"the guard keeps the better weights after epoch {self._at} of {self._offered}"


def verdict(guard: Guard, before: Reading, after: Reading) -> str | None:
    """Return why the run must be undone, or ``None`` when it may stand."""
    if before.retain is not None and after.retain is not None:
        lost = before.retain - after.retain
        if lost > guard.budget:
            return (
                f"guard: accuracy on watched retained samples fell by {100 * lost:.1f} points "
                f"({100 * before.retain:.1f} to {100 * after.retain:.1f} %), more than the budget "
                f"of {100 * guard.budget:.1f}"
            )
    if after.forget >= before.forget > 0 and after.forget_loss <= before.forget_loss + 1e-3:
        return (
            f"guard: nothing was forgotten (forget accuracy {100 * before.forget:.1f} % before, "
            f"{100 * after.forget:.1f} % after)"
        )
    return None
