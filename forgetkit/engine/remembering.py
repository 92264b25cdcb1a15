"""Measurements that hold as long as no weight was written to."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from torch import Tensor, nn

from forgetkit.engine.bit_sums import bit_sums
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
        only: the tensors of it that the run may write to; default all.
    """

    def __init__(
        self, model: nn.Module, measure: Measure, only: Collection[Tensor] | None = None
    ) -> None:
        self._model = model
        self._only = only
        self._measure = measure
        self._state: tuple[int, ...] | None = None
        self._found: list[tuple[SampleSet, Tensor | None, SetAccuracy]] = []

    def __call__(self, samples: SampleSet, labels: Tensor | None = None) -> SetAccuracy:
        """Return the accuracy of a set at this moment."""
        state = self._now()
        if state is None or state != self._state:
            self._found.clear()
            self._state = state
        for known, held_against, found in self._found:
            if known is samples and held_against is labels:
                return found
        found = self._measure(samples, labels)
        self._found.append((samples, labels, found))
        return found

    def _now(self) -> tuple[int, ...] | None:
        """Return numbers that change with any weight; ``None`` where writes are not counted.

        Autograd counts every write to a tensor, but for those to its ``data``: the sums see them.
        """
        tensors = self._only
        if tensors is None:
            tensors = [*self._model.parameters(), *self._model.buffers()]
        if any(tensor.is_inference() for tensor in tensors):
            return None
        writes = [tensor._version for tensor in tensors]  # noqa: SLF001 - torch has no other name
        sums = bit_sums({str(number): tensor for number, tensor in enumerate(tensors)})
        return (*writes, *sums.values())
