"""Seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from forgetkit.progress import working


class Clock:
    """Adds up wall time by phase and remembers the phase that is running.

    The time of a phase within another one counts for the inner one alone.

    Attributes:
        seconds: wall time by phase name.
        phase: the phase that runs, or ran last.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.phase = "start"
        self._inside: list[float] = []  # for each running phase, what phases within it have taken
        self._running: list[tuple[str, float]] = []  # each with its start

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as part of a phase; a block that breaks leaves ``phase`` as it is."""
        outer, self.phase = self.phase, phase
        self._inside.append(0.0)
        start = time.perf_counter()
        self._running.append((phase, start))
        try:
            with working(phase):
                yield
            if len(self._inside) > 1:
                self.phase = outer
        finally:
            self._running.pop()
            spent = time.perf_counter() - start
            own = spent - self._inside.pop()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + own
            if self._inside:
                self._inside[-1] += spent

    def so_far(self) -> dict[str, float]:
        """Return the seconds by phase, with what the running ones have taken until now."""
        found, now, deeper = dict(self.seconds), time.perf_counter(), 0.0
        for (phase, start), inside in zip(self._running[::-1], self._inside[::-1], strict=True):
            spent = now - start
            found[phase] = found.get(phase, 0.0) + spent - inside - deeper
            deeper = spent
        return found

    def add(self, earlier: Mapping[str, float]) -> None:
        """Count seconds by phase that were spent before."""
        for phase, spent in earlier.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
