"""Everything that one loader holds, with labels, as a set that can be cut in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from forgetkit.data.batches import Reader, batch_size, is_batch, rows_of
from forgetkit.data.labels import by_library, normalised, stored
from forgetkit.data.loaders import Loader, Reading, covered, reading_of
from forgetkit.data.randomness import random_state_kept
from forgetkit.data.reservoir import Reservoir
from forgetkit.data.sets import IndexedSet, StoredSet, read_chunks
from forgetkit.errors import DataError
from forgetkit.types import Inputs

PROBED = 64
"""Samples that are read to see whether a data set of the user's own returns the labels it lists."""

Membership: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From labels and positions of some samples to a boolean mask of those wanted."""

_Found: TypeAlias = tuple[object, Tensor, Tensor]  # loader, positions, labels

_kept: ContextVar[dict[tuple[int, int], _Found] | None] = ContextVar(
    "forgetkit_labels", default=None
)


@contextmanager
def labels_kept() -> Iterator[None]:
    """Find the labels of a loader with positions once inside the block, however often it is split.

    For many runs on the same data: where a data set does not list its labels, finding them reads
    every sample. Each batch that a run reads is held against them all the same.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


@dataclass(frozen=True)
class Source:
    """What was found in a loader.

    Args:
        labels: labels of every sample seen.
        positions: (samples,) int64 position of every sample seen.
        samples: the samples that can be read again.
        complete: whether these are all that were seen, or only the wanted ones.
        spare: of an incomplete source, a few of those that are not wanted.
    """

    labels: Tensor
    positions: Tensor
    samples: IndexedSet | StoredSet
    complete: bool
    spare: StoredSet | None = None

    @property
    def indexed(self) -> bool:
        """Whether positions are those of a map-style data set."""
        return isinstance(self.samples, IndexedSet)

    def part(self, chosen: Tensor) -> IndexedSet | StoredSet:
        """Return the samples of a boolean mask over everything seen.

        An incomplete source has kept the wanted samples only, and gives those.
        """
        if not self.complete:
            return self.samples
        return self.samples.take(torch.nonzero(chosen).flatten())


def read_source(
    loader: Loader,
    num_classes: int,
    name: str,
    wanted: Membership,
    *,
    spare: int | None = None,
    seed: int = 0,
) -> Source:
    """Read a loader once, or not at all where its data set tells its labels.

    Lists of batches and other loaders with a length are kept whole; of an iterable data set or an
    iterator the wanted samples are kept, and as many others as ``spare`` says.

    Args:
        loader: what to read.
        num_classes: width of the model's logits.
        name: how messages call the loader.
        wanted: which samples to keep in any case.
        spare: largest number of others, drawn at random; ``None`` keeps them all.
        seed: what that draw depends on.

    Returns:
        What was found.

    Raises:
        DataError: the loader holds nothing, or its batches cannot be used.
    """
    reading = reading_of(loader)
    if reading is not None:
        samples = _indexed(loader, reading, num_classes, name)
        return Source(samples.labels, samples.positions, samples, complete=True)
    if kept_whole(loader):
        return _streamed(loader, num_classes, name, None)
    if spare is None:  # copied row by row: what is read once may fill one buffer again and again
        return replace(_streamed(loader, num_classes, name, _every), complete=True)
    return _streamed(loader, num_classes, name, wanted, Reservoir(spare, seed))


def _every(labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG001
    return torch.ones(len(positions), dtype=torch.bool)


def kept_whole(loader: Loader) -> bool:
    """Return whether all of a loader without positions is kept: whether it has a length."""
    once = isinstance(getattr(loader, "dataset", loader), IterableDataset)
    return isinstance(loader, Sized) and not isinstance(loader, Iterator) and not once


def read_all(loader: Loader, num_classes: int, name: str) -> IndexedSet | StoredSet:
    """Return everything in a loader; what has no positions is kept in memory.

    Raises:
        DataError: the loader holds nothing, or its batches cannot be used.
    """
    reading = reading_of(loader)
    if reading is not None:
        return _indexed(loader, reading, num_classes, name)
    return _streamed(loader, num_classes, name, None).samples


def first_inputs(loader: Loader, name: str, count: int = 2) -> Inputs | None:
    """Return the inputs of the first samples that a loader draws from, in data-set order.

    Its sampler is not moved and the global random state is kept. ``None`` for a loader without
    positions, from which nothing can be read without taking it away.

    Raises:
        DataError: the loader holds nothing, or its samples cannot be used.
    """
    reading = reading_of(loader)
    if reading is None:
        return None
    with random_state_kept():
        rows = covered(loader, name)[:count].tolist()
        inputs, _ = next(read_chunks(reading, [rows], 0, Reader(name)))
    return inputs


def _indexed(loader: Loader, reading: Reading, num_classes: int, name: str) -> IndexedSet:
    kept, key = _kept.get(), (id(loader), num_classes)
    found = None if kept is None else kept.get(key)
    if found is None:
        # with the loader itself: no other object can have its id meanwhile
        found = (loader, *_positions_and_labels(loader, reading, num_classes, name))
        if kept is not None:
            kept[key] = found
    _, positions, labels = found
    return IndexedSet(reading, positions, labels, name=name)


def _positions_and_labels(
    loader: Loader, reading: Reading, num_classes: int, name: str
) -> tuple[Tensor, Tensor]:
    positions = covered(loader, name)
    if len(positions) == 0:
        raise DataError(
            f"{name}: expected samples, found a sampler that draws none; pass one that does"
        )
    labels = _labels_listed(loader, reading, positions, num_classes, name)
    if labels is None:
        labels = _labels_read(reading, positions, num_classes, name)
    return positions, labels


def _labels_listed(
    loader: Loader, reading: Reading, positions: Tensor, num_classes: int, name: str
) -> Tensor | None:
    """Return the labels that a data set lists if some of its samples, read, have the same."""
    dataset = loader.dataset if isinstance(loader, DataLoader) else loader
    known = stored(dataset, num_classes)
    if known is None:
        return None
    # the two ends have unlike labels, where samples are sorted by class
    probed = positions[[0, -1]].unique() if by_library(dataset) else _spread(positions)
    found = _labels_read(reading, probed, num_classes, name)
    alike = known.ndim == found.ndim and torch.equal(known[probed], found)
    return known[positions] if alike else None


def _spread(positions: Tensor) -> Tensor:
    """Return one position at random of each of equal parts: no period of the data set hides."""
    draw = torch.Generator().manual_seed(0)
    parts = [part for part in positions.tensor_split(PROBED) if len(part)]
    return torch.cat([part[torch.randint(len(part), (1,), generator=draw)] for part in parts])


def _labels_read(reading: Reading, positions: Tensor, num_classes: int, name: str) -> Tensor:
    reader = Reader(name)
    chunks = [rows.tolist() for rows in positions.split(reading.batch_size)]
    parts = [
        normalised(labels, num_classes, reader.where)
        for _, labels in read_chunks(reading, chunks, 0, reader)
    ]
    return _joined(parts, name)


def _streamed(
    loader: Loader,
    num_classes: int,
    name: str,
    wanted: Membership | None,
    others: Reservoir | None = None,
) -> Source:
    reader = Reader(name)
    labels: list[Tensor] = []
    kept_inputs: list[Inputs] = []
    kept: list[Tensor] = []
    seen, largest = 0, 0
    for raw in iterated(loader, name):
        inputs, found = reader.read(raw)
        size = batch_size(inputs)
        if size == 0:
            continue
        part = normalised(found, num_classes, reader.where)
        labels.append(part)
        positions = torch.arange(seen, seen + size)
        seen, largest = seen + size, max(largest, size)
        if wanted is None:
            kept_inputs.append(inputs)
            kept.append(positions)
            continue
        mask = wanted(part, positions)
        # an empty cut of the first batch says what the inputs look like if none is wanted
        if bool(mask.any()) or not kept:
            kept_inputs.append(rows_of(inputs, torch.nonzero(mask).flatten()))
            kept.append(positions[mask])
        if others is not None:
            rows = torch.nonzero(~mask).flatten()
            others.offer(inputs, rows, positions[rows])
    if not seen:
        raise DataError(
            f"{name}: expected batches, found a loader that yields nothing; pass one that holds "
            "samples, or make an exhausted iterator anew"
        )
    every, rows = _joined(labels, name), torch.cat(kept)
    samples = StoredSet(_concatenated(kept_inputs, name), every[rows], rows, largest)
    spare: StoredSet | None = None
    if others is not None and (held := others.held()):
        where = torch.tensor([position for position, _ in held])
        spare = StoredSet(
            _concatenated([one for _, one in held], name), every[where], where, largest
        )
    return Source(every, torch.arange(seen), samples, complete=wanted is None, spare=spare)


def iterated(loader: Loader, name: str) -> Iterable[object]:
    """Return a loader that is known to yield batches, which a data set does not.

    Raises:
        DataError: it yields none.
    """
    if is_batch(loader):
        raise DataError(
            f"{name}: expected an iterable of batches, found one batch, a {type(loader).__name__}; "
            "pass a list of it, [batch], or of several"
        )
    single = isinstance(loader, (Dataset, str, bytes, dict))
    if single or not isinstance(loader, Iterable):
        raise DataError(
            f"{name}: expected an iterable of batches, found {type(loader).__name__}; pass a "
            "torch.utils.data.DataLoader over it (with batch_size=None where it yields batches "
            "already), or a list of (images, labels) batches"
        )
    return loader


def _joined(parts: list[Tensor], name: str) -> Tensor:
    if len({part.ndim for part in parts}) > 1:
        raise DataError(
            f"{name}: expected one kind of label, found class indices in some batches and "
            "multi-label rows in others; return one kind"
        )
    return torch.cat(parts)


def _concatenated(parts: list[Inputs], name: str) -> Inputs:
    first = parts[0]
    try:
        if isinstance(first, Tensor):
            return torch.cat([part for part in parts if isinstance(part, Tensor)])
        named = [part for part in parts if not isinstance(part, Tensor)]
        return {key: torch.cat([part[key] for part in named]) for key in first}
    except (RuntimeError, KeyError) as error:
        raise DataError(
            f"{name}: expected inputs of one shape in every batch, found others ({error}); resize "
            "or crop all images to one size, and give every batch the same entries"
        ) from error
