"""Random numbers of the caller, and of a data set that augments its images."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from forgetkit.types import Inputs, SampleSet

LOOKED_AT = 32
"""Samples that are read twice; of two, a random flip leaves both as they are one time in four."""


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the global CPU random states of Python, NumPy and torch back on leaving."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)


def repeats(samples: SampleSet) -> bool:
    """Return whether samples give the same tensors each time they are read.

    Args:
        samples: at least one; the first ones are read twice.
    """
    few = samples.take(torch.arange(min(LOOKED_AT, len(samples))))
    first, again = (next(iter(few.batches(LOOKED_AT))).inputs for _ in range(2))
    return same(first, again)


def same(one: Inputs, other: Inputs) -> bool:
    """Return whether two batches are equal to the bit."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and one.equal(other)
    return all(one[name].equal(other[name]) for name in one)
