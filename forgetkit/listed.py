"""Lists that a user gives, as plain checked Python values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from forgetkit.errors import BadTarget

_SHOWN = 8


def as_positions(step: str, given: Iterable[int]) -> tuple[int, ...]:
    """Return positions in a data set: integers from 0, none twice."""
    example = "relabel({17: 4})" if step == "relabel" else f"{step}([17, 42])"
    found = as_list(step, given, "positions in loader.dataset", example)
    positions = tuple(as_integer(step, item, "position") for item in found)
    refuse_repeats(step, positions)
    return positions


def as_list(step: str, given: object, what: str, example: str) -> list[object]:
    """Return what was listed as plain Python values; refuse what is no list."""
    if hasattr(given, "tolist"):  # arrays and tensors
        given = given.tolist()
    wrong_kind = isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable)
    if wrong_kind:
        raise BadTarget(
            f"{step}: expected a list of {what}, found {given!r} of type {type(given).__name__}; "
            f"write for instance {example}"
        )
    values: list[object] = list(given)  # type: ignore[call-overload]  # wrong_kind has sorted out the rest
    if isinstance(given, (set, frozenset)):
        values.sort(key=lambda value: (str(type(value)), value))
    if not values:
        raise BadTarget(
            f"{step}: expected at least one entry in the list of {what}, found an empty list; "
            f"write for instance {example}"
        )
    return values


def as_integer(step: str, item: object, what: str) -> int:
    """Return a plain integer of 0 or more; scalars of NumPy and torch are accepted."""
    value = item.tolist() if hasattr(item, "tolist") else item  # NumPy and torch scalars
    if isinstance(value, bool) or not isinstance(value, int):
        hint = (
            "turn a mask into positions with torch.nonzero(mask).flatten()"
            if isinstance(value, bool)
            else "pass whole numbers that count from 0"
        )
        raise BadTarget(
            f"{step}: expected every {what} to be an integer, found {item!r} of type "
            f"{type(item).__name__}; {hint}"
        )
    if value < 0:
        raise BadTarget(
            f"{step}: expected every {what} to be 0 or more, found {value}; count from 0, "
            "counting back from the end is not supported"
        )
    return value


def refuse_repeats(step: str, values: Sequence[int | str]) -> None:
    """Refuse a list that names something twice."""
    seen: set[int | str] = set()
    repeated = [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]  # add returns None, which is false
    if repeated:
        raise BadTarget(
            f"{step}: expected every entry once, found {repeated[0]!r} more than once; "
            "remove the repeats"
        )


def shortened(entries: Sequence[object], shown: int = _SHOWN) -> str:
    """Return the first entries of a list in words, and how many more there are."""
    text = ", ".join(map(str, entries[:shown]))
    return text if len(entries) <= shown else f"{text} and {len(entries) - shown} more"
