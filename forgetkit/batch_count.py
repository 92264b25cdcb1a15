"""How many batches a number of samples makes."""

from __future__ import annotations


def joins_last(samples: int, size: int) -> bool:
    """Return whether a single last sample goes with the batch before it, as in training.

    Normalisation over a batch of one has no variance.
    """
    return size > 1 and samples > size and samples % size == 1


def batches_in(samples: int, size: int) -> int:
    """Return the number of batches that training makes of samples."""
    return -(-samples // size) - joins_last(samples, size)
