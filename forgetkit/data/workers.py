"""Worker processes that go on reading from pass to pass, until the run that needs them ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from forgetkit.data.loaders import Reading

Chunks = list[list[int]]


class _Asked:
    """What a crew reads next: a batch sampler whose batches change from pass to pass."""

    def __init__(self) -> None:
        self.chunks: Chunks = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


class _Crew:
    """The worker processes of one ``DataLoader`` that keeps them."""

    def __init__(self, reading: Reading, workers: int, seed: int) -> None:
        self._asked = _Asked()
        self.reading = reading
        self.workers = workers
        self._loader: DataLoader[object] = reading.loader(
            self._asked, workers=workers, seed=seed, keep=True
        )

    def read(self, chunks: Chunks) -> Iterator[object]:
        self._asked.chunks = chunks
        return iter(self._loader)

    def close(self) -> None:
        """End the processes now, not when the last frame of an error lets go of them."""
        iterator = getattr(self._loader, "_iterator", None)  # torch has no public way
        end = getattr(iterator, "_shutdown_workers", None)
        if end is not None:
            end()


class _Crews:
    """Crews that are free, by what they read. Two passes at the same time need two crews."""

    def __init__(self) -> None:
        self._free: dict[int, list[_Crew]] = {}

    def read(self, reading: Reading, chunks: Chunks, seed: int) -> Iterator[object]:
        wanted = min(reading.workers, len(chunks))  # one more would be started for nothing
        free = self._free.setdefault(id(reading), [])
        crew = next((crew for crew in free if crew.workers >= wanted), None)
        if crew is not None:
            free.remove(crew)
        else:
            for smaller in free[:1]:  # a larger one takes its place
                free.remove(smaller)
                smaller.close()
            crew = _Crew(reading, wanted, seed)
        try:
            yield from crew.read(chunks)
        except GeneratorExit:  # nobody wants the rest; the next pass drops what was read ahead
            free.append(crew)
            raise
        except BaseException:
            crew.close()
            raise
        free.append(crew)

    def close(self) -> None:
        for crew in itertools.chain.from_iterable(self._free.values()):
            crew.close()
        self._free.clear()


_current: ContextVar[_Crews | None] = ContextVar("forgetkit_crews", default=None)


@contextmanager
def workers_kept() -> Iterator[None]:
    """Keep the worker processes of every loader that is read inside the block until its end."""
    crews = _Crews()
    token = _current.set(crews)
    try:
        yield
    finally:
        _current.reset(token)
        crews.close()


def end_workers() -> None:
    """End the worker processes that are kept now, for a caller who must see an interrupt of it."""
    crews = _current.get()
    if crews is not None:
        crews.close()


def read_by_workers(reading: Reading, chunks: Chunks, seed: int) -> Iterator[object]:
    """Yield one collated batch for each list of positions, read by worker processes.

    Inside ``workers_kept`` a pass goes on with the processes, and their random states, of one that
    has ended, if there is one; ``seed`` is for those that are started. Elsewhere they end with it.
    """
    kept = _current.get()
    crews = _Crews() if kept is None else kept
    try:
        yield from crews.read(reading, chunks, seed)
    finally:
        if kept is None:
            crews.close()
