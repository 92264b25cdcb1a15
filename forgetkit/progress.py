"""How far long work is: a progress bar on a terminal, and a sentence for whoever asks elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What a loop tells its progress bar.

    Args:
        expect: called with the number of steps as soon as it is known.
        advance: called once a step.
    """

    expect: Callable[[int], None] = lambda _: None
    advance: Callable[[], None] = lambda: None


@dataclass(eq=False)
class _Work:
    """Something that is under way."""

    title: str
    done: int = 0
    steps: int | None = None

    def expect(self, steps: int) -> None:
        self.steps = steps

    def advance(self) -> None:
        self.done += 1

    def __str__(self) -> str:
        if self.steps is None:
            return self.title + (f" {self.done}" if self.done else "")
        return f"{self.title} {self.done} of {self.steps}"


_under_way: list[_Work] = []  # of the whole process: another thread asks for it


def under_way() -> str:
    """Say what this process is doing, from the outside in; empty when nobody told."""
    return ", ".join(map(str, list(_under_way)))


@contextmanager
def working(title: str) -> Iterator[Bar]:
    """Let ``under_way`` name the block.

    Args:
        title: a word or two.
    """
    work = _Work(title)
    _under_way.append(work)
    try:
        yield Bar(work.expect, work.advance)
    finally:
        _under_way.remove(work)


@contextmanager
def progress(title: str) -> Iterator[Bar]:
    """Yield a bar that is drawn on standard error if that is a terminal.

    Args:
        title: shown before the bar.
    """
    if not sys.stderr.isatty():
        with working(title) as bar:
            yield bar
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as drawn:
        task = drawn.add_task(title, total=None)
        yield Bar(
            expect=lambda steps: drawn.update(task, total=steps),
            advance=lambda: drawn.advance(task),
        )
