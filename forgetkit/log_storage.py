"""How much disk a training log takes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Storage:
    """What a log will take on disk.

    Args:
        step_bytes: one logged step.
        steps: logged steps that are expected when the order is random.
    """

    step_bytes: int
    steps: float

    @property
    def total_bytes(self) -> float:
        """The whole log."""
        return self.step_bytes * self.steps

    def __str__(self) -> str:
        return (
            f"about {self.total_bytes / 2**30:.2f} GiB: {self.steps:.0f} logged steps of "
            f"{self.step_bytes / 2**20:.1f} MiB"
        )


def hit_chance(samples: int, drawn: int, tracked: int) -> float:
    """Return the chance that ``drawn`` of ``samples`` hold at least one of ``tracked``."""
    if drawn == 0 or tracked == 0:
        return 0.0
    if samples - drawn < tracked:
        return 1.0
    lg = math.lgamma
    missed = lg(samples - drawn + 1) + lg(samples - tracked + 1)
    missed -= lg(samples - drawn - tracked + 1) + lg(samples + 1)
    return -math.expm1(missed)
