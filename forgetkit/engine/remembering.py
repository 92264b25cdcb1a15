"""Measurements that hold as long as no weight was written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from forgetkit.engine.measuring import SetAccuracy
from forgetkit.types import SampleSet

Measure: TypeAlias = Callable[[SampleSet, Tensor | None], SetAccuracy]


class Remembered:
    """Measures a set, or returns what was found at the very same weights.

    A method that stops or undoes by the forget accuracy asks for it where the record of the epoch
    does so again a moment later.

    Args:
        model: whose weights count.
        measure: measures a set, against its labels or others.
    """

    def __init__(self, model: nn.Module, measure: Measure) -> None:
        self._model = model
        self._measure = measure
        self._writes: tuple[int, ...] | None = None
        self._found: list[tuple[SampleSet, Tensor | None, SetAccuracy]] = []

    def __call__(self, samples: SampleSet, labels: Tensor | None = None) -> SetAccuracy:
        """Return the accuracy of a set at this moment."""
        writes = self._count_writes()
        if writes is None or writes != self._writes:
            self._found.clear()
            self._writes = writes
        for known, held_against, found in self._found:
            if known is samples and held_against is labels:
                return found
        found = self._measure(samples, labels)
        self._found.append((samples, labels, found))
        return found

    def _count_writes(self) -> tuple[int, ...] | None:
        """Return how often each tensor was written to, as autograd counts it; ``None`` unknown."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return tuple(tensor._version for tensor in tensors)  # noqa: SLF001 - torch has no other name
