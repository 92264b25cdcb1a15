"""The first samples of a loader, looked at without taking anything away from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from torch.utils.data import DataLoader

from forgetkit.data.batches import Reader, rows_of
from forgetkit.data.loaders import Loader
from forgetkit.data.sources import first_inputs, iterated, kept_whole
from forgetkit.errors import DataError
from forgetkit.types import Inputs

PEEK = 2
"""Samples to look at: enough to tell the batch axis from the others."""


def peeked(loader: Loader, name: str = "loader") -> tuple[Loader, Inputs]:
    """Return a loader that still yields everything, and the inputs of its first two samples.

    An indexed data set is asked for its first samples, so that the loader's own sampler draws no
    random number. An iterator is put together again with what was taken from it.

    Raises:
        DataError: nothing can be read from the loader.
    """
    indexed = first_inputs(loader, name, PEEK)
    if indexed is not None:
        return loader, indexed
    left, first = opened(loader, name)
    inputs, _ = Reader(name).read(first)
    return left, rows_of(inputs, slice(0, PEEK))


def opened(loader: Loader, name: str = "loader") -> tuple[Loader, object]:
    """Return a loader that still yields everything, and its first batch as it came.

    Only sequences and torch's own loaders are known to start anew; of anything else, a progress
    bar around a generator for one, the same pass is gone on with.

    Raises:
        DataError: nothing can be read from the loader.
    """
    stream = iter(iterated(loader, name))
    try:
        first = next(stream)
    except StopIteration:
        raise DataError(
            f"{name}: expected batches, found a loader that yields nothing; pass one that "
            "holds samples, or make an exhausted iterator anew"
        ) from None
    whole = kept_whole(loader)
    if whole and isinstance(loader, (Sequence, DataLoader)):
        return loader, first
    rest = chain([first], stream)
    return (_SizedRest(rest, loader) if whole else _Rest(rest)), first


class _Rest(Iterator[object]):
    """An iterator that was looked into."""

    def __init__(self, stream: Iterator[object]) -> None:
        self._stream = stream

    def __next__(self) -> object:
        return next(self._stream)


class _SizedRest(Iterable[object]):
    """A pass that was looked into, of a loader that has a length and so is kept whole."""

    def __init__(self, stream: Iterator[object], loader: Loader) -> None:
        self._stream = stream
        self._loader = loader

    def __iter__(self) -> Iterator[object]:
        return self._stream

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # kept_whole has seen its __len__
