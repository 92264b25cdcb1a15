"""Sets made of other sets: some rows of one, or several in a row."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from forgetkit.data.batches import rows_of
from forgetkit.data.sets import cut
from forgetkit.errors import DataError
from forgetkit.types import Batch, Inputs, SampleSet


class _Composed(abc.ABC):
    """Reads a set in batches through ``read``, which the kinds of views define."""

    labels: Tensor
    batch_size: int
    at_once: int
    _reads: Iterator[int]  # two reads draw their augmentations anew

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int | None = None,
        *,
        generator: Generator | None = None,
        shard: tuple[int, int] = (0, 1),
        training: bool = False,
    ) -> Iterator[Batch]:
        """Iterate once; see ``SampleSet``."""
        seed = next(self._reads)
        if generator is not None:
            seed = (seed + generator.initial_seed()) % 2**63
        chunks = cut(len(self), batch_size or self.batch_size, generator, training=training)
        return self.read(chunks, seed=seed, shard=shard)

    @abc.abstractmethod
    def read(
        self, chunks: tuple[Tensor, ...], *, seed: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Iterate once in batches of the given rows; see ``SampleSet``."""


_APART = 1_000_003  # between the random streams of joined sets


class RowsOf(_Composed):
    """Some rows of a set, in an order of their own; ``Batch.index`` stays the row in that set.

    Args:
        samples: the set.
        rows: (some,) int64 rows of it.
    """

    def __init__(self, samples: SampleSet, rows: Tensor) -> None:
        self.source = samples
        self.rows = rows.cpu()
        self.labels = samples.labels[self.rows]
        self.positions = samples.positions[self.rows]
        self.batch_size = samples.batch_size
        self.at_once = samples.at_once
        new = samples.new_labels
        self.new_labels = None if new is None else new[self.rows]
        self._reads = getattr(samples, "_reads", None) or itertools.count()

    def read(
        self, chunks: tuple[Tensor, ...], *, seed: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Iterate once in batches of the given rows; see ``SampleSet``."""
        yield from self.source.read(
            tuple(self.rows[chunk] for chunk in chunks), seed=seed, shard=shard
        )

    def take(self, rows: Tensor) -> RowsOf:
        """Return the set of the given rows, in that order."""
        return RowsOf(self.source, self.rows[rows])


class Joined(_Composed):
    """Several sets in a row, read as one; ``Batch.index`` counts through, the first set first.

    Args:
        parts: sets of inputs of one shape and labels of one kind; empty ones are allowed.

    Raises:
        DataError: no set is given, or class indices and 0/1 vectors are mixed.
    """

    def __init__(self, *parts: SampleSet) -> None:
        kinds = {part.labels.ndim for part in parts}
        if len(kinds) != 1:
            raise DataError(
                f"joined sets: expected one or more sets with labels of one kind, found "
                f"{len(parts)} sets with {sorted(kinds)} label dimensions; join sets of one data "
                "set"
            )
        self.parts = parts
        self.labels = torch.cat([part.labels for part in parts])
        self.positions = torch.cat([part.positions for part in parts])
        self.batch_size = parts[0].batch_size
        self.at_once = min(part.at_once for part in parts)
        self.new_labels: Tensor | None = None
        self.starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(dim=0)
        # joined anew for each epoch, it must go on counting where the last one stopped
        self._reads = getattr(parts[0], "_reads", None) or itertools.count()

    def read(
        self, chunks: tuple[Tensor, ...], *, seed: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Iterate once in batches of the given rows; see ``SampleSet``."""
        rank, world = shard
        shares = [chunk[rank::world] for chunk in chunks]
        empty = [len(share) == 0 for share in shares]
        # a process without a share still needs the shapes: read one row and cut it off again
        fetched = [
            chunk[:1] if none else share
            for chunk, share, none in zip(chunks, shares, empty, strict=True)
        ]
        sources = [
            torch.bucketize(rows.contiguous(), self.starts, right=True) - 1 for rows in fetched
        ]
        streams = [
            part.read(
                tuple(
                    rows[which == number] - self.starts[number]
                    for rows, which in zip(fetched, sources, strict=True)
                    if bool((which == number).any())
                ),
                seed=seed + number * _APART,
            )
            for number, part in enumerate(self.parts)
        ]
        readers = [iter(stream) for stream in streams]
        for chunk, share, rows, which in zip(chunks, shares, fetched, sources, strict=True):
            batch = self._assembled(readers, rows, which)
            yield Batch(
                rows_of(batch.inputs, slice(0, len(share))),
                batch.labels[: len(share)],
                share,
                len(chunk),
            )

    def _assembled(self, readers: list[Iterator[Batch]], rows: Tensor, which: Tensor) -> Batch:
        """Return one batch whose samples come from several sets, in the order of ``rows``."""
        present = which.unique().tolist()
        found = [next(readers[number]) for number in present]
        order = torch.cat([(which == number).nonzero()[:, 0] for number in present]).argsort()
        whole = _concatenated([batch.inputs for batch in found])
        labels = torch.cat([batch.labels for batch in found])
        return Batch(rows_of(whole, order), labels[order], rows, len(rows))

    def take(self, rows: Tensor) -> RowsOf:
        """Return the set of the given rows, in that order; the rows keep their numbers."""
        return RowsOf(self, rows)


def _concatenated(inputs: list[Inputs]) -> Inputs:
    first = inputs[0]
    if isinstance(first, Tensor):
        return torch.cat([some.to(first.device) for some in inputs if isinstance(some, Tensor)])
    return {
        name: torch.cat([some[name] for some in inputs if not isinstance(some, Tensor)])
        for name in first
    }


__all__ = ["Joined", "RowsOf"]
