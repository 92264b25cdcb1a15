"""The first samples of a loader, looked at without taking anything away from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from torch.utils.data import DataLoader, IterableDataset

from forgetkit.data.batches import Reader, rows_of
from forgetkit.data.loaders import Loader
from forgetkit.data.sources import first_inputs
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

    Raises:
        DataError: nothing can be read from the loader.
    """
    if not isinstance(loader, Iterable):
        raise DataError(
            f"{name}: expected an iterable of batches, found {type(loader).__name__}; pass a "
            "DataLoader, a data set or a list of batches"
        )
    stream = iter(loader)
    try:
        first = next(stream)
    except StopIteration:
        raise DataError(
            f"{name}: expected batches, found a loader that yields nothing; pass one that "
            "holds samples, or make an exhausted iterator anew"
        ) from None
    once = isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
    left = _Rest(chain([first], stream)) if stream is loader or once else loader
    return left, first


class _Rest(Iterator[object]):
    """An iterator that was looked into."""

    def __init__(self, stream: Iterator[object]) -> None:
        self._stream = stream

    def __next__(self) -> object:
        return next(self._stream)
