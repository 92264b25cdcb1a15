"""Files that are there whole or not at all, whenever the process that writes them ends."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forgetkit.errors import BadHyperparameter, DataError


def path_of(value: object, name: str) -> Path:
    """Return the path that an argument names.

    Args:
        value: a string or a path.
        name: of the argument, for the message.

    Raises:
        BadHyperparameter: it is something else.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise BadHyperparameter(
            f"{name}={value!r}: expected a path, found {type(value).__name__}; pass a string or a "
            "pathlib.Path"
        )
    return Path(value)


def refuse_unwritable(path: Path) -> None:
    """Refuse a place that cannot be written, before the work whose result goes there.

    Nothing is made: the folder that is there, or would be the first to get a new one, is tried.

    Raises:
        DataError: a file is where a folder would have to be, or the folder takes no files.
    """
    folder = next(place for place in path.absolute().parents if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = error.strerror if folder.is_dir() else "a file"
        raise DataError(
            f"{path}: expected a place that can be written, found {folder}: {found}; choose "
            "another one"
        ) from error


def beside(path: Path) -> Path:
    """Return an unused hidden name in the same folder, for a result that is not complete yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name to write to; a file takes the place of ``path`` when the block ends well.

    Args:
        path: its folder is made where there is none. A folder can be written, too, where there is
            nothing of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Return when a file's bytes are on the disk, and not only on their way there."""
    with path.open("rb+") as opened:
        os.fsync(opened.fileno())
