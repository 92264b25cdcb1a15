"""Random numbers that belong to a sample, not to the order in which samples are read (rule R7)."""

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Bits: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint64]]"
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, purpose: str, positions: Tensor) -> Tensor:
    """Return one float64 in [0, 1) per sample, a pure function of seed, purpose and position.

    The same sample draws the same number in any batch order and with any number of processes.
    The mixing function is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

    Args:
        seed: the request's seed.
        purpose: keeps the draws of different methods apart.
        positions: (samples,) int64 positions in the user's data.
    """
    key = np.uint64(seed & 0xFFFFFFFF) << np.uint64(32) | np.uint64(zlib.crc32(purpose.encode()))
    with np.errstate(over="ignore"):
        state = _mixed(np.atleast_1d(key)) + positions.cpu().numpy().astype(np.uint64) * _GOLDEN
        bits = _mixed(state)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) / float(1 << 53))


def _mixed(state: Bits) -> Bits:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Bits = state ^ (state >> np.uint64(31))
    return mixed
