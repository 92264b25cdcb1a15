"""The inputs of a loader, once each, for statistics of all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from forgetkit.data.batches import Reader, batch_size
from forgetkit.data.loaders import Loader, covered, reading_of
from forgetkit.data.randomness import LOOKED_AT, same
from forgetkit.data.sets import read_chunks
from forgetkit.errors import DataError
from forgetkit.types import Inputs

logger = logging.getLogger("forgetkit")


def of_shape(shape: tuple[int, ...], batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """Yield batches whose samples have one shape.

    Raises:
        DataError: a batch has another one.
    """
    for inputs in batches:
        found = sample_shape(inputs)
        if found != shape:
            raise DataError(
                f"statistics: expected images of shape {shape}, as the first ones have, found "
                f"{found}; use one transform, which makes all images equally large"
            )
        yield inputs


def sample_shape(inputs: Inputs) -> tuple[int, ...]:
    """Return the shape of one sample, of its first tensor."""
    first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return tuple(first.shape[1:])


def inputs_of(loader: Loader) -> Iterator[Inputs]:
    """Yield the inputs of every sample that a loader draws from, batch by batch, once each."""
    reader = Reader("loader", needs_labels=False)
    reading = reading_of(loader)
    if reading is not None:  # its own order and drop_last do not matter here
        chunks = [rows.tolist() for rows in covered(loader, "loader").split(reading.batch_size)]
        yield from (inputs for inputs, _ in read_chunks(reading, chunks, 0, reader))
        return
    if not isinstance(loader, Iterable):
        raise DataError(
            f"loader: expected an iterable of batches, found {type(loader).__name__}; pass a "
            "DataLoader or a list of (images, labels) batches"
        )
    yield from (reader.read(raw)[0] for raw in loader)


def warn_of_augmentation(loader: Loader) -> None:
    """Read some samples twice: what is not the same again cannot be taken out again."""
    reading = reading_of(loader)
    if reading is None:  # a stream is read once
        return
    looked_at = covered(loader, "loader")[:LOOKED_AT].split(reading.batch_size)
    chunks = [rows.tolist() for rows in looked_at]
    first, again = (
        read_chunks(reading, chunks, seed, Reader("loader", needs_labels=False)) for seed in (0, 1)
    )
    if not all(same(one[0], other[0]) for one, other in zip(first, again, strict=True)):
        logger.warning(
            "statistics: the loader gives a different image each time a sample is read (random "
            "augmentation), so the moments of images to forget will not be part of these; collect "
            "them with a deterministic transform"
        )


def count_of(loader: Loader) -> int | None:
    """Return how many samples a loader draws from, or ``None`` for a stream."""
    if reading_of(loader) is not None:
        return len(covered(loader, "loader"))
    if isinstance(loader, Sequence):
        reader = Reader("loader", needs_labels=False)
        return sum(batch_size(reader.read(raw)[0]) for raw in loader)
    return None
