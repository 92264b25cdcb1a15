"""Seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up wall time by phase and remembers the phase that is running.

    Attributes:
        seconds: wall time by phase name.
        phase: the phase that runs, or ran last.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.phase = "start"

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as part of a phase."""
        self.phase = phase
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
