"""Runs that are broken off right after their progress was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from forgetkit.engine.resuming import Progress, Saved


@contextmanager
def watched_saves(*, until: int | None = None) -> Iterator[list[int]]:
    """Yield a list that grows by the number of epochs with each write of progress.

    Args:
        until: raise ``KeyboardInterrupt`` right after the write with this many epochs.
    """
    seen: list[int] = []
    written = Progress.save

    def save(progress: Progress, saved: Saved) -> None:
        written(progress, saved)
        seen.append(saved.epochs)
        if saved.epochs == until:
            raise KeyboardInterrupt

    with mock.patch.object(Progress, "save", save):
        yield seen
