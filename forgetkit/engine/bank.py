"""Features extracted once: a head-only run never calls the backbone again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from forgetkit.data.sets import StoredSet
from forgetkit.engine.finite import Finite
from forgetkit.engine.place import Place
from forgetkit.errors import UnlearningFailed
from forgetkit.types import Batch, SampleSet
from forgetkit.view import ModelView

MEMORY_BUDGET = 2 * 1024**3
"""Bytes of features that stay in memory; a larger bank lives in a memory-mapped file."""

AT_ONCE = 64 * 1024**2
"""Bytes of features that the head is given together where nothing is learnt from them."""


class FeatureBank:
    """Extracts the head's inputs of sample sets, and keeps them until the run ends.

    Args:
        view: the split model.
        place: device, precision and processes; every process ends with the whole bank, so that
            all run the same head algebra.
        input_dtype: tells the type that inputs of the backbone must have, ``None`` to leave them.
        budget: bytes a bank may take in memory.

    Attributes:
        dtype: type in which the layers before the head gave the features that are kept in float32.
    """

    def __init__(
        self,
        view: ModelView,
        place: Place,
        input_dtype: Callable[[], torch.dtype | None],
        budget: int = MEMORY_BUDGET,
    ) -> None:
        self._view = view
        self._place = place
        self._input_dtype = input_dtype
        self._budget = budget
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self.dtype = torch.float32

    def close(self) -> None:
        """Remove the memory-mapped files, if any."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @torch.no_grad()
    def extract(self, samples: SampleSet) -> StoredSet:
        """Return a set whose inputs are float32 features of ``samples``, in the same order.

        Raises:
            UnlearningFailed: a feature is not finite.
        """
        store: Tensor | None = None
        filled = 0
        finite = Finite("features of the model: expected finite values", self._place)
        for number, batch in enumerate(samples.batches(shard=self._place.shard)):
            features = self._local_features(samples, batch)
            finite.add(number, features)
            if store is None:
                store = self._allocate(len(samples), features)
            store[filled : filled + len(features)] = features
            filled += len(features)
        finite.check()
        if store is None or filled != len(samples):
            raise UnlearningFailed(
                f"features of the model: expected {len(samples)} rows, found {filled}; the loader "
                "must give the same samples each time it is read"
            )
        return StoredSet(
            store, samples.labels, samples.positions, samples.batch_size, at_once=_at_once(store)
        )

    def _local_features(self, samples: SampleSet, batch: Batch) -> Tensor:
        source = batch
        if len(batch) == 0:  # keep this process in step: compute one row and drop it
            source = next(iter(samples.take(torch.tensor([0])).batches(1)))
        moved = self._place.moved(source, self._input_dtype())
        with self._place.autocast():
            features = self._view.features(moved.inputs)
        self.dtype = features.dtype
        features = features.float()
        if self._place.world == 1:
            return features
        return self._gathered(features[: len(batch)], batch.total)

    def _gathered(self, features: Tensor, total: int) -> Tensor:
        """Return the rows of all processes in their order: process r holds rows r::world."""
        rank, world = self._place.shard
        whole = features.new_zeros((total, *features.shape[1:]))
        whole[rank::world] = features
        return self._place.total(whole)

    def _allocate(self, rows: int, like: Tensor) -> Tensor:
        shape = (rows, *like.shape[1:])
        size = rows * like[0].numel() * 4
        if size <= self._budget:
            return torch.empty(shape, device=self._place.device)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="forgetkit-bank-")
        self._files += 1
        file = Path(self._folder.name) / f"{self._files}.bin"
        mapped = torch.from_file(
            str(file), shared=True, size=rows * like[0].numel(), dtype=torch.float32
        )
        return mapped.view(shape)


def _at_once(features: Tensor) -> int:
    """Return how many rows the head is given together: thousands of vectors, few feature maps."""
    return min(4096, max(1, AT_ONCE // (4 * features[0].numel())))
