"""A progress bar that exists only on a terminal."""

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


@contextmanager
def progress(title: str) -> Iterator[Bar]:
    """Yield a bar that is drawn on standard error if that is a terminal.

    Args:
        title: shown before the bar.
    """
    if not sys.stderr.isatty():
        yield Bar()
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
    ) as bar:
        task = bar.add_task(title, total=None)
        yield Bar(
            expect=lambda steps: bar.update(task, total=steps),
            advance=lambda: bar.advance(task),
        )
