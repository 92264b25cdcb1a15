"""Sample sets: finite, re-readable, in order or shuffled, whole or in one process's share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from forgetkit.batch_count import joins_last
from forgetkit.data.batches import Reader, batch_size, rows_of
from forgetkit.data.labels import normalised
from forgetkit.data.loaders import DEFAULT_BATCH_SIZE, Reading
from forgetkit.errors import DataError
from forgetkit.listed import shortened
from forgetkit.types import Batch, Inputs


class IndexedSet:
    """Samples of a map-style data set, read as the user's loader reads them.

    Args:
        reading: data set, collate function, workers.
        positions: (samples,) int64 positions in the data set.
        labels: (samples,) int64 or (samples, classes) float; every batch read is held against
            them.
        name: how messages call the loader.
        new_labels: (samples,) int64 corrected labels, for the goal ``relabel`` only.
    """

    def __init__(
        self,
        reading: Reading,
        positions: Tensor,
        labels: Tensor,
        *,
        name: str = "loader",
        new_labels: Tensor | None = None,
    ) -> None:
        self.reading = reading
        self.positions = positions
        self.labels = labels
        self.new_labels = new_labels
        self.batch_size = self.at_once = reading.batch_size
        self._name = name
        # Workers seed their augmentations from this, so that two reads differ as they would
        # in one process. Parts share it for the same reason.
        self._reads = itertools.count()

    def __len__(self) -> int:
        return len(self.positions)

    def batches(
        self,
        batch_size: int | None = None,
        *,
        generator: Generator | None = None,
        shard: tuple[int, int] = (0, 1),
        training: bool = False,
    ) -> Iterator[Batch]:
        """Iterate once; see ``SampleSet``.

        Raises:
            DataError: a batch cannot be used, or its labels are not those found before.
        """
        whole = cut(len(self), batch_size or self.batch_size, generator, training=training)
        seed = next(self._reads)
        if generator is not None:
            seed += generator.initial_seed()
        return self.read(whole, seed=seed % 2**63, shard=shard)

    def read(
        self, chunks: tuple[Tensor, ...], *, seed: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Iterate once in batches of the given rows; see ``SampleSet``.

        Raises:
            DataError: as ``batches``.
        """
        whole = chunks
        rank, world = shard
        shares = [rows[rank::world] for rows in whole]
        # nothing can be collated from no samples: read one and cut it off again
        fetched = [
            share if len(share) else rows[:1] for share, rows in zip(shares, whole, strict=True)
        ]
        asked = [self.positions[rows].tolist() for rows in fetched]
        reader = Reader(self._name)
        for share, rows, rows_read, (inputs, found) in zip(
            shares, whole, fetched, read_chunks(self.reading, asked, seed, reader), strict=True
        ):
            labels = self.labels[rows_read]
            self._compare(found, labels, self.positions[rows_read], reader.where)
            yield Batch(
                inputs=inputs if len(share) else rows_of(inputs, slice(0, 0)),
                labels=labels[: len(share)],
                index=share,
                total=len(rows),
            )

    def _compare(self, found: object, labels: Tensor, positions: Tensor, where: str) -> None:
        width = labels.shape[1] if labels.ndim == 2 else None
        read = normalised(found, width, where)
        if read.shape == labels.shape and torch.equal(read, labels):
            return
        bad = 0
        if read.shape == labels.shape:
            bad = int(torch.nonzero((read != labels).reshape(len(labels), -1).any(dim=1))[0])
        raise DataError(
            f"{where}: expected position {int(positions[bad])} to have the label "
            f"{labels[bad].tolist()} that was found before, found "
            f"{read[bad].tolist() if len(read) > bad else 'nothing'}; make the data set return the "
            "same labels each time, and the ones that its own list of labels (targets, labels, "
            "samples) holds"
        )

    def take(self, rows: Tensor) -> IndexedSet:
        """Return the set of the given rows, in that order."""
        new = None if self.new_labels is None else self.new_labels[rows]
        taken = IndexedSet(
            self.reading, self.positions[rows], self.labels[rows], name=self._name, new_labels=new
        )
        taken._reads = self._reads
        return taken

    def relabelled(self, new_labels: Tensor) -> IndexedSet:
        """Return the same samples with corrected labels beside the old ones."""
        taken = self.take(torch.arange(len(self)))
        taken.new_labels = new_labels
        return taken


class StoredSet:
    """Samples in memory.

    Args:
        inputs: (samples, ...) or a mapping of such tensors, on any device; not copied.
        labels: (samples,) int64 or (samples, classes) float.
        positions: (samples,) int64 positions in the user's stream; default 0, 1, 2, ...
        batch_size: samples in a batch.
        at_once: samples in a batch where nothing is learnt from them; default ``batch_size``.
        new_labels: (samples,) int64 corrected labels, for the goal ``relabel`` only.

    Raises:
        DataError: the tensors differ in length.
    """

    def __init__(
        self,
        inputs: Inputs,
        labels: Tensor,
        positions: Tensor | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        *,
        at_once: int | None = None,
        new_labels: Tensor | None = None,
    ) -> None:
        self.inputs = inputs
        self.labels = labels
        self.positions = torch.arange(len(labels)) if positions is None else positions
        self.batch_size = batch_size
        self.at_once = at_once or batch_size
        self.new_labels = new_labels
        named = {"inputs": inputs} if isinstance(inputs, Tensor) else inputs
        sizes = {name: len(value) for name, value in named.items()}
        sizes |= {"labels": len(labels), "positions": len(self.positions)}
        if len(set(sizes.values())) != 1:
            raise DataError(
                f"StoredSet: expected tensors of one length, found {sizes}; pass one label and one "
                "position for each sample"
            )

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
        whole = cut(len(self), batch_size or self.batch_size, generator, training=training)
        return self.read(whole, shard=shard)

    def read(
        self,
        chunks: tuple[Tensor, ...],
        *,
        seed: int = 0,  # noqa: ARG002  nothing here is random
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Iterate once in batches of the given rows; see ``SampleSet``."""
        rank, world = shard
        return (self._batch(rows[rank::world], len(rows)) for rows in chunks)

    def _batch(self, rows: Tensor, total: int) -> Batch:
        return Batch(rows_of(self.inputs, rows), self.labels[rows], rows, total)

    def take(self, rows: Tensor) -> StoredSet:
        """Return the set of the given rows, in that order."""
        return StoredSet(
            rows_of(self.inputs, rows),
            self.labels[rows],
            self.positions[rows],
            self.batch_size,
            at_once=self.at_once,
            new_labels=None if self.new_labels is None else self.new_labels[rows],
        )

    def relabelled(self, new_labels: Tensor) -> StoredSet:
        """Return the same samples with corrected labels beside the old ones."""
        return StoredSet(
            self.inputs, self.labels, self.positions, self.batch_size, at_once=self.at_once,
            new_labels=new_labels,
        )  # fmt: skip


def read_chunks(
    reading: Reading, chunks: list[list[int]], seed: int, reader: Reader
) -> Iterator[tuple[Inputs, object]]:
    """Yield checked inputs and raw labels, one batch for each list of positions.

    Raises:
        DataError: a sample cannot be read, or a batch is not of the size asked for.
    """
    stream = reading.batches(chunks, seed) if chunks else iter(())
    for number, chunk in enumerate(chunks):
        try:
            raw = next(stream)
        except Exception as error:
            raise DataError(_unreadable(reader.name, number, chunk, error)) from error
        inputs, labels = reader.read(raw)
        if batch_size(inputs) != len(chunk):
            raise DataError(
                f"{reader.where}: expected {len(chunk)} samples, found {batch_size(inputs)}; use a "
                "collate_fn that neither drops nor adds samples"
            )
        yield inputs, labels


def _unreadable(name: str, number: int, chunk: list[int], error: Exception) -> str:
    # worker processes put their traceback into the message; its last line says what happened
    text = (str(error).strip().splitlines() or ["no message"])[-1]
    if isinstance(error, DataError):  # of a data set that says all there is to say
        return text.removeprefix("forgetkit.errors.DataError: ")
    if "PIL." in str(error):
        advice = (
            "add torchvision.transforms.ToTensor() (or the model's image processor) to the data"
        )
    elif "equal size" in str(error):
        advice = "resize or crop all images to one size"
    else:
        advice = "check that the data set returns these samples and that they collate"
    return (
        f"{name}, batch {number} (counted from 0): expected the samples at positions "
        f"{shortened(chunk, 4)}, found {type(error).__name__}: {text}; {advice}"
    )


def cut(
    samples: int, size: int, generator: Generator | None, *, training: bool = False
) -> tuple[Tensor, ...]:
    """Return the rows of each batch; the order is drawn at once, not when batches are read.

    In random order, and in order for training, a single last row joins the batch before it.
    """
    if samples == 0:
        return ()
    ordered = generator is None
    rows = torch.arange(samples) if ordered else torch.randperm(samples, generator=generator)
    if joins_last(samples, size) and (training or not ordered):
        *whole, last = rows[:-1].split(size)
        return (*whole, torch.cat([last, rows[-1:]]))
    return tuple(rows.split(size))


__all__ = ["IndexedSet", "StoredSet", "cut", "read_chunks"]
