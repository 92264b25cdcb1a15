"""The batches of an epoch: which set drives it, and how two sets are paired."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator

from forgetkit.errors import DataError
from forgetkit.method import Pair
from forgetkit.types import Batch, Inputs, SampleSet


def _forever(
    samples: SampleSet, size: int | None, generator: Generator | None, shard: tuple[int, int]
) -> Iterator[Batch]:
    while True:
        yield from samples.batches(size, generator=generator, shard=shard, training=True)


def pairs(
    steps: str,
    forget: SampleSet,
    retain: SampleSet | None,
    *,
    batch_size: int | None,
    other_batch_size: int | None = None,
    once: str | None = None,
    generator: Generator | None,
    shard: tuple[int, int],
) -> Iterator[Pair]:
    """Yield the pairs of one pass, in order when there is no generator.

    With ``"both"`` the set that ``once`` names, or else the one with more samples, is read once and
    the other one is restarted as often as needed (rule R2), so that no sample is dropped.
    """
    if steps == "forget":
        for batch in forget.batches(batch_size, generator=generator, shard=shard, training=True):
            yield Pair(batch, None)
        return
    if retain is None:
        raise DataError(
            "retain set: expected samples to keep, found none; pass `.retain(loader)` or a loader "
            "that holds the whole training set"
        )
    if steps == "retain":
        for batch in retain.batches(batch_size, generator=generator, shard=shard, training=True):
            yield Pair(None, batch)
        return
    other_size = other_batch_size or batch_size
    if (once or larger(forget, retain)) == "forget":
        other = _forever(retain, other_size, generator, shard)
        for batch in forget.batches(batch_size, generator=generator, shard=shard, training=True):
            yield Pair(batch, next(other))
    else:
        other = _forever(forget, other_size, generator, shard)
        for batch in retain.batches(batch_size, generator=generator, shard=shard, training=True):
            yield Pair(next(other), batch)


def larger(forget: SampleSet, retain: SampleSet | None) -> str:
    """Return which of two sets has more samples; of two as large, D_f."""
    return "forget" if retain is None or len(forget) >= len(retain) else "retain"


def part(batch: Batch, rows: torch.Tensor) -> Batch:
    """Return the given rows of a batch; ``total`` stays the size of the whole."""
    inputs: Inputs
    if isinstance(batch.inputs, torch.Tensor):
        inputs = batch.inputs[rows]
    else:
        inputs = {name: value[rows] for name, value in batch.inputs.items()}
    return Batch(inputs, batch.labels[rows], batch.index[rows], batch.total)


def chunks(pair: Pair, count: int) -> list[tuple[Pair, float, float]]:
    """Cut a pair into at most ``count`` parts; each comes with its share of the two batches.

    A part holds samples of both batches where the pair has both.
    """
    sizes = [len(batch) for batch in (pair.forget, pair.retain) if batch is not None]
    count = min([count, *(size for size in sizes if size > 0)])
    if count == 1:
        return [(pair, 1.0, 1.0)]
    forgets = _cut(pair.forget, count)
    retains = _cut(pair.retain, count)
    return [
        (Pair(f, r), _share(f, pair.forget), _share(r, pair.retain))
        for f, r in zip(forgets, retains, strict=True)
        if f is not None or r is not None
    ]


def _cut(batch: Batch | None, count: int) -> list[Batch | None]:
    if batch is None:
        return [None] * count
    rows = torch.arange(len(batch)).tensor_split(count)
    return [part(batch, some) if len(some) else None for some in rows]


def _share(some: Batch | None, whole: Batch | None) -> float:
    if some is None or whole is None or len(whole) == 0:
        return 0.0
    return len(some) / len(whole)
