"""How a user's loader reads its data set, so that samples can be read again in any order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from forgetkit.data.workers import read_by_workers
from forgetkit.errors import DataError

Loader: TypeAlias = Iterable[object] | Dataset[object]
"""Batches, or a data set whose samples torch's default_collate can batch."""

DEFAULT_BATCH_SIZE = 64
_WHOLE = (SequentialSampler, RandomSampler, DistributedSampler)


@dataclass(frozen=True)
class Reading:
    """The part of a ``DataLoader`` that says how samples become batches.

    Args:
        dataset: map-style data set.
        batch_size: samples in a batch.
        collate: from a list of samples to a batch.
        workers: processes that read ahead.
        pin_memory: whether batches are put in page-locked memory where there is an accelerator.
        context: how the worker processes are started.
        worker_init: called in each of them.
        timeout: seconds to wait for a worker, 0 for ever.
        prefetch: batches that each worker reads ahead, or ``None`` for torch's default.
    """

    dataset: Dataset[object]
    batch_size: int = DEFAULT_BATCH_SIZE
    collate: Callable[[list[object]], object] = default_collate
    workers: int = 0
    pin_memory: bool = False
    context: object = None
    worker_init: Callable[[int], None] | None = None
    timeout: float = 0.0
    prefetch: int | None = None

    def batches(self, chunks: list[list[int]], seed: int) -> Iterator[object]:
        """Return one collated batch for each list of positions in the data set.

        Args:
            chunks: positions, batch by batch; none of them empty.
            seed: what worker processes that are started derive their random numbers from.
        """
        if self.workers > 0:
            return read_by_workers(self, chunks, seed)
        return iter(self.loader(chunks, workers=0, seed=seed))

    def loader(
        self, chunks: Iterable[list[int]], *, workers: int, seed: int, keep: bool = False
    ) -> DataLoader[object]:
        """Return a loader of these batches that reads as the user's does.

        Args:
            chunks: positions, batch by batch.
            workers: processes that read ahead.
            seed: what they derive their random numbers from.
            keep: whether they go on living between two passes.
        """
        return DataLoader(
            self.dataset,
            batch_sampler=chunks,
            collate_fn=self.collate,
            num_workers=workers,
            pin_memory=self.pin_memory and torch.accelerator.is_available(),
            timeout=self.timeout if workers else 0,
            worker_init_fn=self.worker_init,
            multiprocessing_context=self.context if workers else None,
            prefetch_factor=self.prefetch if workers else None,
            persistent_workers=keep,
            # without one of its own, every pass draws from torch's global generator
            generator=torch.Generator().manual_seed(seed),
        )


class _WholeBatches(Dataset[object]):
    """A data set that is asked for a list of positions and returns the batch itself."""

    def __init__(self, dataset: Dataset[object]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return _length(self._dataset)

    def __getitem__(self, index: int) -> object:
        return self._dataset[index]

    def __getitems__(self, rows: list[int]) -> list[object]:
        return [self._dataset[rows]]  # what a DataLoader does without a batch size


@dataclass(frozen=True)
class _OnlyOne:
    """Hands the one fetched batch to the user's collate function."""

    collate: Callable[..., object]

    def __call__(self, fetched: list[object]) -> object:
        return self.collate(fetched[0])


def is_map_style(dataset: object) -> TypeGuard[Dataset[object]]:
    """Return whether samples can be asked for by position."""
    if isinstance(dataset, (list, tuple, IterableDataset)):
        return False
    known = isinstance(dataset, Dataset) or hasattr(dataset, "column_names")
    return known and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def reading_of(loader: object) -> Reading | None:
    """Return how to read a map-style data set as its loader does, or ``None`` for a stream.

    A stream is whatever has no positions: an iterable data set, a list of batches, a generator,
    or a ``DataLoader(batch_size=None)`` whose data set holds whole batches.
    """
    if not isinstance(loader, DataLoader):
        return Reading(loader) if is_map_style(loader) else None
    dataset: Dataset[object] = loader.dataset
    if isinstance(dataset, IterableDataset):
        return None
    size, collate = loader.batch_size, loader.collate_fn
    if loader.batch_sampler is not None:
        size = size or getattr(loader.batch_sampler, "batch_size", None)
    elif isinstance(loader.sampler, BatchSampler):
        size = loader.sampler.batch_size
        dataset, collate = _WholeBatches(dataset), _OnlyOne(collate)
    else:
        return None
    return Reading(
        dataset=dataset,
        batch_size=size if isinstance(size, int) else DEFAULT_BATCH_SIZE,
        collate=collate,
        workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        context=loader.multiprocessing_context,
        worker_init=loader.worker_init_fn,
        timeout=loader.timeout,
        prefetch=loader.prefetch_factor,
    )


def covered(loader: object, name: str) -> Tensor:
    """Return the positions in the data set that a loader draws from, ascending, int64.

    A sampler that is not torch's own is iterated once to see; its generator is put back. The
    caller keeps the global random state.

    Raises:
        DataError: the data set is empty, or an unknown sampler has no length.
    """
    dataset = loader.dataset if isinstance(loader, DataLoader) else loader
    size = _length(dataset)
    if size == 0:
        raise DataError(
            f"{name}: expected samples, found an empty data set; pass one that holds samples"
        )
    if not isinstance(loader, DataLoader):
        return torch.arange(size)
    sampler: object = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    # Accelerate wraps batch samplers to share them between processes
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    if isinstance(sampler, _WHOLE):
        return torch.arange(size)
    if isinstance(sampler, SubsetRandomSampler):
        return torch.as_tensor(sorted(set(sampler.indices)), dtype=torch.int64)
    if isinstance(sampler, WeightedRandomSampler):
        return torch.nonzero(sampler.weights > 0).flatten()
    return _drawn(sampler, name)


def _drawn(sampler: object, name: str) -> Tensor:
    if not isinstance(sampler, Iterable) or not isinstance(sampler, Sized):
        raise DataError(
            f"{name}: expected a sampler with a length, found {type(sampler).__name__}; build the "
            "DataLoader without it, for instance over torch.utils.data.Subset(dataset, positions)"
        )
    generator = getattr(sampler, "generator", None)
    state = generator.get_state() if isinstance(generator, torch.Generator) else None
    positions: set[int] = set()
    # a sampler may draw for ever; its length says what an epoch is
    for rows in itertools.islice(sampler, len(sampler)):
        # a tensor for each of a million whole numbers would take ten seconds
        one = (rows,) if isinstance(rows, int) else torch.as_tensor(rows).flatten().tolist()
        positions.update(one)
    if state is not None and isinstance(generator, torch.Generator):
        generator.set_state(state)
    return torch.as_tensor(sorted(positions), dtype=torch.int64)


def _length(dataset: object) -> int:
    return len(dataset)  # type: ignore[arg-type]  # is_map_style has seen its __len__
