"""A few samples of a stream, drawn at random while it passes."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from forgetkit.data.batches import rows_of
from forgetkit.types import Inputs


class Reservoir:
    """Holds at most so many of all samples offered, each with the same chance, by a seed.

    Args:
        most: samples to hold, 0 for none.
        seed: what the draw depends on, beside the number of samples offered.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most = most
        self._generator = Generator().manual_seed(seed)
        self._offered = 0
        self._held: dict[int, tuple[int, Inputs]] = {}

    def offer(self, inputs: Inputs, rows: Tensor, positions: Tensor) -> None:
        """Look at some samples of a batch; those held are copied out of it.

        Args:
            inputs: the batch.
            rows: (samples,) int64 rows of it.
            positions: (samples,) int64 their positions in the stream.
        """
        if not self._most:
            return
        count = len(rows)
        numbers = torch.arange(self._offered + 1, self._offered + count + 1)
        self._offered += count
        # the n-th sample takes one of n places, of which the first few are held
        draws = torch.rand(count, generator=self._generator, dtype=torch.float64)
        drawn = (draws * numbers).long()
        place = torch.where(numbers <= self._most, numbers - 1, drawn)
        for row in torch.nonzero(place < self._most).flatten().tolist():
            one = rows_of(inputs, rows[row : row + 1])
            self._held[int(place[row])] = int(positions[row]), one

    def held(self) -> list[tuple[int, Inputs]]:
        """Return positions and batches of one, in the order of the stream."""
        return sorted(self._held.values(), key=lambda found: found[0])
