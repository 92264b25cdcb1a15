"""The header of a training log: how a log is begun, gone on with and closed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from operator import index
from pathlib import Path

from torch import nn

from forgetkit.errors import DataError, ModelError
from forgetkit.fingerprint import digest, model_prints
from forgetkit.written_log import HEADER, LEFT, step_files

logger = logging.getLogger("forgetkit")


def weights_digest(model: nn.Module) -> str | None:
    """Return what tells a model's weights from others, or ``None`` where they cannot be read."""
    try:
        return digest(model_prints(model))
    except ModelError as error:  # a training that has ended should not break on it
        logger.warning("the training log does not know the weights that it leaves: %s", error)
        return None


def open_log(
    folder: Path,
    header: Mapping[str, object],
    *,
    resume: bool | int,
    weights: Callable[[], str | None],
) -> int:
    """Write the header, or hold it against the one that is there.

    Args:
        folder: of the log.
        header: what this log would write.
        resume: as ``AmnesiacLog`` takes it.
        weights: returns the digest of the model's weights.

    Returns:
        The number of the next step.

    Raises:
        DataError: the folder holds a log that this one cannot go on with, or none to go on with.
    """
    said = f"AmnesiacLog(folder={str(folder)!r}"
    file = folder / HEADER
    made = resume if isinstance(resume, bool) else index(resume)
    if made < 0:
        raise DataError(
            f"{said}, resume={made}): expected True, or the number of steps that the restored "
            f"model has made, found {made}; count from 0"
        )
    if not file.exists():
        if made is not True and made > 0:
            raise DataError(
                f"{said}, resume={made}): expected the log of {made} steps in it, found none; name "
                "the folder that these steps were logged to"
            )
        file.write_text(json.dumps(header), encoding="utf-8")
        return 0
    if made is False:
        raise DataError(
            f"{said}): expected a folder without a log, found {HEADER} in it; pass resume=True to "
            "go on with it, resume=<steps that the model has made> after a checkpoint was "
            "restored, or name another folder"
        )
    known = json.loads(file.read_text(encoding="utf-8"))
    left = known.pop(LEFT, None)
    size = known.get("samples")
    mine = {"samples": size, **header}  # without a size of its own this log goes on with it
    if _holds(mine["tensors"], known.get("tensors")):
        known["tensors"] = mine["tensors"]  # earlier versions left frozen weights out
    if {**known, "samples": mine["samples"] if size is None else size} != mine:
        raise DataError(
            f"{said}, resume={made}): expected a log of this model, data set and these sensitive "
            "samples, found another one; name another folder"
        )
    if made is True and (left is None or left != weights()):
        found = "a log that was never closed" if left is None else "other weights"
        raise DataError(
            f"{said}, resume=True): expected the model as this log left it, found {found}; load "
            "the weights first, and pass resume=<steps that the restored model has made>: steps "
            "behind its checkpoint are no part of it"
        )
    if made is not True:
        set_aside(folder, made)
    file.write_text(json.dumps(mine), encoding="utf-8")
    return _next_number(folder) if made is True else made


def _holds(tensors: object, some: object) -> bool:
    """Return whether tensors, shapes by name, are among others."""
    return isinstance(tensors, dict) and isinstance(some, dict) and some.items() <= tensors.items()


def close_log(folder: Path, weights: str | None) -> None:
    """Note the weights that training left."""
    file = folder / HEADER
    header = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**header, LEFT: weights}), encoding="utf-8")


def set_aside(folder: Path, made: int) -> None:
    """Rename the files of steps that a restored model has not made."""
    for file in step_files(folder):
        if _number(file) >= made:
            file.replace(file.with_suffix(".aside"))


def _next_number(folder: Path) -> int:
    return max((_number(file) + 1 for file in step_files(folder)), default=0)


def _number(file: Path) -> int:
    return int(file.stem.partition("-")[2])
