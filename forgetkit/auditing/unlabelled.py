"""Loaders without labels: what needs none can still be audited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from forgetkit.data.batches import NoLabels, Reader, batch_size
from forgetkit.data.loaders import Loader, reading_of
from forgetkit.data.sources import first_inputs
from forgetkit.engine.peeking import opened
from forgetkit.types import Inputs

BATCH = 128
"""Images a batch, where a bare data set is given."""


def with_placeholders(loader: Loader, name: str) -> tuple[Loader, bool]:
    """Return the loader and whether its samples have labels; without any, each gets the label 0.

    Only the first samples are looked at: a loader that has labels there and none later is refused
    when it is read.

    Raises:
        DataError: the loader holds nothing, or no images.
    """
    if reading_of(loader) is not None:
        try:
            first_inputs(loader, name)
        except NoLabels:
            if isinstance(loader, DataLoader):
                return _Placeholders(loader, name), False
            return _Placeholders(DataLoader(cast("Dataset[object]", loader), BATCH), name), False
        return loader, True
    left, first = opened(loader, name)
    try:
        Reader(name).read(first)
    except NoLabels:
        marked = _Placeholders(cast("Iterable[object]", left), name)
        return iter(marked) if isinstance(left, Iterator) else marked, False
    return left, True


class _Placeholders(Iterable[tuple[Inputs, Tensor]]):
    """A loader's images, each with the label 0."""

    def __init__(self, loader: Iterable[object], name: str) -> None:
        self._loader = loader
        self._name = name

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        reader = Reader(self._name, needs_labels=False)
        for raw in self._loader:
            inputs, _ = reader.read(raw)
            yield inputs, torch.zeros(batch_size(inputs), dtype=torch.long)
