"""Records that travel between the layers. Shapes are given in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Generator, Tensor

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""What a model is called with: one tensor, or named tensors passed by keyword."""

Terms: TypeAlias = Mapping[str, Tensor]
"""Named scalar loss terms, each already weighted; the engine minimises their sum."""


@dataclass(frozen=True)
class Batch:
    """One batch of samples of one set.

    Args:
        inputs: (batch, channels, height, width), features (batch, dim), or a mapping of tensors.
        labels: (batch,) int64 class indices, or (batch, classes) float 0/1 for multi-label.
        index: (batch,) int64 positions of the samples in the set they come from.
        total: size of the whole batch over all processes, and of all parts where gradients are
            accumulated; equals ``len(labels)`` in one process that takes batches whole.
    """

    inputs: Inputs
    labels: Tensor
    index: Tensor
    total: int

    def __len__(self) -> int:
        return len(self.labels)


class SampleSet(Protocol):
    """A finite set of labelled samples that can be read again and again.

    Attributes:
        labels: (samples,) int64, or (samples, classes) float for multi-label.
        positions: (samples,) int64 positions of the samples in the user's data set or stream.
        new_labels: (samples,) int64 wanted labels of a relabel goal, else ``None``.
        batch_size: samples a batch when none is asked for: that of the user's loader.
        at_once: samples a batch where nothing is learnt from them: more than ``batch_size`` where
            they are features of few numbers.
    """

    labels: Tensor
    positions: Tensor
    batch_size: int
    at_once: int
    new_labels: Tensor | None

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int | None = None,
        *,
        generator: Generator | None = None,
        shard: tuple[int, int] = (0, 1),
        training: bool = False,
    ) -> Iterable[Batch]:
        """Iterate once: in order, or shuffled when a CPU generator is given.

        A single last sample joins the batch before it when shuffled or for ``training``: a batch
        of one has no statistics to normalise by. ``batch_size`` defaults to the user's loader's.
        ``shard=(rank, world)`` yields rows ``rank::world`` of every batch; ``Batch.total`` is the
        size before that cut. A process whose share of a batch is empty gets an empty batch, so
        that all make the same steps.
        """
        ...

    def read(
        self, chunks: tuple[Tensor, ...], *, seed: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> Iterable[Batch]:
        """Iterate once in batches of the given rows; ``seed`` is for random augmentation."""
        ...

    def take(self, rows: Tensor) -> SampleSet:
        """Return the set of the given rows (int64 positions in this set), in that order."""
        ...


PixelBounds: TypeAlias = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]
"""Lowest and highest value of a pixel: two numbers, or one of each for every channel."""


@dataclass(frozen=True)
class Place:
    """Where samples stand in one data set.

    Args:
        size: samples of that data set.
        positions: (samples,) int64 positions in it.
    """

    size: int
    positions: Tensor


@dataclass(frozen=True)
class Sets:
    """What a request works on.

    Args:
        forget: D_f, never empty.
        retain: D_r, or ``None`` when nothing retained is at hand.
        validation: data to measure and stop on, or ``None``.
        places: where D_f stands in the loader's data set, then in the one that this is a
            ``torch.utils.data.Subset`` of, and so on.
        spare: a few retained samples of a loader that can be read only once, to watch; only where
            no D_r is at hand.
    """

    forget: SampleSet
    retain: SampleSet | None = None
    validation: SampleSet | None = None
    places: tuple[Place, ...] = ()
    spare: SampleSet | None = None
