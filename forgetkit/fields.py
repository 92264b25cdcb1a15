"""Hyper-parameters as dataclass fields whose range and meaning live in their metadata."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal, TypeVar

import numpy as np

from forgetkit.errors import BadHyperparameter
from forgetkit.types import PixelBounds

T = TypeVar("T")
_KEY = "forgetkit"


@dataclass(frozen=True)
class Bounds:
    """What a field accepts.

    Args:
        kind: ``"number"``, ``"integer"``, ``"choice"``, ``"flag"``, ``"interval"``,
            ``"artefact"`` or ``"positions"``.
        about: one line: meaning, unit, the paper's letter.
        low: smallest value, included.
        high: largest value, included.
        options: the accepted words of a choice.
        optional: whether ``None`` is accepted.
        by_layer: whether a dict of such numbers, by the path of a layer, is accepted as well.
        by_channel: whether the ends of an interval may be tuples, one number a channel.
    """

    kind: Literal["number", "integer", "choice", "flag", "interval", "artefact", "positions"]
    about: str
    low: float = -math.inf
    high: float = math.inf
    options: tuple[str, ...] = ()
    optional: bool = False
    by_layer: bool = False
    by_channel: bool = False

    def describe(self) -> str:
        """Say in words what is accepted."""
        if self.kind == "choice":
            text = "one of " + ", ".join(repr(option) for option in self.options)
        elif self.kind == "flag":
            text = "True or False"
        elif self.kind == "interval":
            text = "a pair (low, high) with low < high"
            if self.by_channel:
                text += ", each one number or a tuple of one for each channel"
        elif self.kind == "artefact":
            text = "the path of a file or folder"
        elif self.kind == "positions":
            text = "positions of samples, whole numbers from 0"
        else:
            noun = "an integer" if self.kind == "integer" else "a number"
            text = f"{noun} in [{self.low:g}, {self.high:g}]"
        if self.by_layer:
            text += ", or such numbers by layer in a dict"
        return f"{text}, or None" if self.optional else text

    def accepts(self, value: object) -> bool:
        """Return whether a value has the right type and lies in the range."""
        if value is None:
            return self.optional
        if self.kind == "choice":
            return value in self.options
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind == "interval":
            pairs = _pairs(value, by_channel=self.by_channel)
            return bool(pairs) and all(
                isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high
                for low, high in pairs
            )
        if self.kind == "artefact":
            return isinstance(value, (str, PurePath)) and bool(str(value))
        if self.kind == "positions":
            return isinstance(value, tuple) and all(map(_is_position, value))
        if self.by_layer and isinstance(value, dict):
            one = replace(self, by_layer=False, optional=False)
            return bool(value) and all(
                isinstance(k, str) and one.accepts(v) for k, v in value.items()
            )
        kinds = (int,) if self.kind == "integer" else (int, float)
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )


def bounded(
    default: T,
    low: float,
    high: float,
    about: str,
    *,
    optional: bool = False,
    by_layer: bool = False,
) -> T:
    """Declare a number in [low, high]; a default of ``None`` makes ``None`` acceptable too.

    ``by_layer`` accepts a dict of such numbers, by the path of a layer.
    """
    kind: Literal["number", "integer"] = "integer" if isinstance(low, int) else "number"
    optional = optional or default is None
    return _declare(default, Bounds(kind, about, low, high, optional=optional, by_layer=by_layer))


def choice(default: T, options: tuple[str, ...], about: str) -> T:
    """Declare one of several words."""
    return _declare(default, Bounds("choice", about, options=options, optional=default is None))


def flag(default: bool, about: str) -> bool:
    """Declare a switch."""
    return _declare(default, Bounds("flag", about))


def interval(about: str) -> tuple[float, float] | None:
    """Declare an optional pair (low, high)."""
    nothing: tuple[float, float] | None = None
    return _declare(nothing, Bounds("interval", about, optional=True))


def pixel_interval(about: str) -> PixelBounds | None:
    """Declare an optional pair (low, high), of numbers or of tuples with one number a channel."""
    nothing: PixelBounds | None = None
    return _declare(nothing, Bounds("interval", about, optional=True, by_channel=True))


def artefact(about: str) -> str | None:
    """Declare an optional file or folder made earlier: statistics, a training log."""
    nothing: str | None = None
    return _declare(nothing, Bounds("artefact", about, optional=True))


def positions(about: str) -> tuple[int, ...] | None:
    """Declare optional positions of samples in a data set."""
    nothing: tuple[int, ...] | None = None
    return _declare(nothing, Bounds("positions", about, optional=True))


def _is_position(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _pairs(value: object, *, by_channel: bool) -> list[tuple[object, object]]:
    """Return the pairs (low, high) of an interval, or nothing when it is none."""
    if not isinstance(value, tuple) or len(value) != 2:
        return []
    low, high = value
    if by_channel and isinstance(low, tuple) and isinstance(high, tuple):
        return list(zip(low, high, strict=True)) if len(low) == len(high) else []
    return [(low, high)]


def _declare(default: T, bounds: Bounds) -> T:
    # The type of a dataclass field is that of its default; dataclasses.field says Any.
    declared: T = field(default=default, metadata={_KEY: bounds})
    return declared


def is_declared(declared: Field[Any]) -> bool:
    """Return whether a field says what it accepts."""
    return isinstance(declared.metadata.get(_KEY), Bounds)


def bounds_of(declared: Field[Any]) -> Bounds:
    """Return what a declared field accepts."""
    found = declared.metadata.get(_KEY)
    if not isinstance(found, Bounds):
        raise TypeError(f"field {declared.name} was not declared by forgetkit.fields")
    return found


def plain(value: object) -> object:
    """Return a value with every NumPy scalar as a Python number, and every list as a tuple."""
    if isinstance(value, np.generic):
        number: object = value.item()
        return number
    if isinstance(value, (tuple, list, range)):
        return tuple(plain(one) for one in value)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value


def check(owner: str, declared: Field[Any], value: object) -> None:
    """Raise ``BadHyperparameter`` unless the field accepts the value."""
    bounds = bounds_of(declared)
    if not bounds.accepts(value):
        unsaved = bounds.kind == "artefact" and hasattr(value, "save")
        cure = "call its save(path) and pass that path, or " if unsaved else ""
        raise BadHyperparameter(
            f"{owner}: {declared.name} must be {bounds.describe()}, found {value!r}; it means: "
            f"{bounds.about}; {cure}leave it out to use the default {declared.default!r}"
        )
