"""What every command shares: where lines go, how errors end it, how JSON is printed."""

from __future__ import annotations

import functools
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, ParamSpec, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from forgetkit.errors import ForgetkitError
from forgetkit.progress import under_way

P = ParamSpec("P")

FAILED = 2
"""Exit status when a request was refused or broke; the model is as it was."""
ROLLED_BACK = 3
"""Exit status when the run cost more than its guard allows and was undone."""

Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]


_ALONE = r"(?<![\w./\\-]){}(?![\w/\\-]|\.\w)"
OPTIONS = {
    re.escape(", or untrained=True to look at the architecture"): "",
    r", or call forgetkit\.saving\.save_model\([^()]*\)": "",
    _ALONE.format("allow_download=True(?: to load_model)?"): "--download",
    r"(?<![\w./\\-])state_dict=\.\.\.": "--weights FILE",
    r"(?<![\w./\\-])state_dict=": "--weights ",
    _ALONE.format("state_dict"): "--weights FILE",
    _ALONE.format("num_classes"): "--num-classes",
}
"""What arguments of Python calls are named on the command line; never inside a path."""


def _as_options(message: str) -> str:
    """Name options instead of arguments in the message of an error."""
    for argument, option in OPTIONS.items():
        message = re.sub(argument, option, message)
    return message


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a refused request into one red sentence on standard error and exit status 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with signs_of_life():
                command(*args, **kwargs)
        except (ForgetkitError, FileNotFoundError) as error:
            Console(stderr=True, soft_wrap=True).print(Text(_as_options(str(error)), style="red"))
            raise typer.Exit(FAILED) from error
        except BrokenPipeError:  # the reader of a pipe has gone, for instance `| head`
            sys.stderr.close()
            raise typer.Exit(1) from None
        except OSError as error:
            told = (
                f"{error.filename}: expected a path that can be read or written, found: "
                f"{error.strerror}; choose another one"
                if error.filename
                else str(error)
            )
            Console(stderr=True, soft_wrap=True).print(Text(told, style="red"))
            raise typer.Exit(FAILED) from error

    return wrapped


EVERY = 60.0
"""Seconds between two signs of life."""


@contextmanager
def signs_of_life() -> Iterator[None]:
    """Say about once a minute what long work is at, where no terminal shows a bar."""
    if sys.stderr.isatty():
        yield
        return
    ended, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(EVERY):
            at = under_way()
            say(f"still at work after {time.monotonic() - begun:.0f} s" + (at and f": {at}"))

    # a thread, for some work takes minutes without a step at which it could be told
    teller = threading.Thread(target=tell, name="signs of life", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def say(line: str) -> None:
    """Print one line about progress on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(line, style="dim"))


def show(thing: object) -> None:
    """Print a text or a rich table on standard output; wider than a pipe's default 80 columns."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(thing)


def show_json(record: object) -> None:
    """Print one JSON object on standard output; numbers that JSON has no word for become null."""
    print(json.dumps(_plain(record), indent=2, allow_nan=False))  # noqa: T201


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)
