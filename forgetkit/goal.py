"""What to forget, as frozen records that know neither model nor data."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from typing_extensions import Self

from forgetkit.data.names import class_names, resolve
from forgetkit.errors import BadTarget
from forgetkit.listed import as_integer, as_list, as_positions, refuse_repeats, shortened

JSON: TypeAlias = "dict[str, object]"


class Goal(abc.ABC):
    """One request: which samples, and what is to become of them."""

    kind: ClassVar[Literal["classes", "instances", "relabel", "depoison"]]

    @abc.abstractmethod
    def describe(self, names: Sequence[str] | None = None) -> str:
        """Say in a few words what is asked for, with class names where they are known."""

    @abc.abstractmethod
    def to_json(self) -> JSON:
        """Return a record that ``Goal.from_json`` turns back into an equal goal."""

    @staticmethod
    def from_json(record: Mapping[str, object]) -> Goal:
        """Build the goal that ``to_json`` described.

        Raises:
            BadTarget: the record is not one of a goal.
        """
        made = _KINDS.get(str(record.get("goal")))
        if made is None:
            raise BadTarget(
                f"Goal.from_json(record): expected record['goal'] to be one of {', '.join(_KINDS)},"
                f" found {record.get('goal')!r}; pass what Goal.to_json() returned"
            )
        return made.from_record(record)

    @classmethod
    @abc.abstractmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """Build a goal of this kind; ``from_json`` finds the kind first."""


@dataclass(frozen=True, init=False)
class Classes(Goal):
    """Forget every sample of these classes.

    Args:
        classes: class indices, names or both; any iterable, kept as a tuple.

    Raises:
        BadTarget: nothing is named, something is named twice, or is neither index nor name.
    """

    kind: ClassVar[Literal["classes"]] = "classes"
    classes: tuple[int | str, ...]

    def __init__(self, classes: Iterable[int | str]) -> None:
        found = as_list("classes", classes, "class indices or names", "classes([3])")
        wanted = tuple(
            item if isinstance(item, str) else as_integer("classes", item, "class index or name")
            for item in found
        )
        refuse_repeats("classes", wanted)
        object.__setattr__(self, "classes", wanted)

    def describe(self, names: Sequence[str] | None = None) -> str:
        """Return for instance ``classes 3 (Dress), 4 (Coat)``."""
        shown = [
            f"{item} ({names[item]})"
            if isinstance(item, int)
            and names is not None
            and item < len(names)
            and names[item] != str(item)
            else str(item)
            for item in self.classes
        ]
        return f"classes {shortened(shown)}"

    def to_json(self) -> JSON:
        """Return ``{"goal": "classes", "classes": [...]}``."""
        return {"goal": self.kind, "classes": list(self.classes)}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """Build the goal from what ``to_json`` returned."""
        return cls(record.get("classes"))  # type: ignore[arg-type]  # checked by the constructor


@dataclass(frozen=True, init=False)
class Instances(Goal):
    """Forget these samples.

    Args:
        positions: positions in ``loader.dataset`` (in the stream, for an iterable one); ``None``
            stands for everything in the loader.

    Raises:
        BadTarget: the list is empty, has repeats, or holds something else than integers >= 0.
    """

    kind: ClassVar[Literal["instances", "depoison"]] = "instances"
    positions: tuple[int, ...] | None

    def __init__(self, positions: Iterable[int] | None = None) -> None:
        found = None if positions is None else as_positions(self.kind, positions)
        object.__setattr__(self, "positions", found)

    def describe(self, names: Sequence[str] | None = None) -> str:  # noqa: ARG002
        """Return for instance ``instances 17, 42``."""
        if self.positions is None:
            return f"{self.kind} (everything in the loader)"
        return f"{self.kind} {shortened([str(position) for position in self.positions])}"

    def to_json(self) -> JSON:
        """Return ``{"goal": ..., "positions": [...] or None}``."""
        listed = None if self.positions is None else list(self.positions)
        return {"goal": self.kind, "positions": listed}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """Build the goal from what ``to_json`` returned."""
        return cls(record.get("positions"))  # type: ignore[arg-type]  # checked by the constructor


@dataclass(frozen=True, init=False)
class Depoison(Instances):
    """Undo the influence of samples that carried wrong labels; the right ones are unknown.

    Args:
        positions: as in ``Instances``.

    Raises:
        BadTarget: as in ``Instances``.
    """

    kind: ClassVar[Literal["instances", "depoison"]] = "depoison"

    def __init__(self, positions: Iterable[int] | None = None) -> None:
        super().__init__(positions)


@dataclass(frozen=True, init=False)
class Relabel(Goal):
    """Correct the labels of these samples.

    Args:
        labels: the new label by position in ``loader.dataset``, or one new label for each sample
            of the loader in the order of ``loader.dataset``.

    Attributes:
        positions: the positions of a mapping, or ``None`` when everything was labelled.
        labels: the new labels, in the order of ``positions``.

    Raises:
        BadTarget: nothing is relabelled, or a position or label is not an integer >= 0.
    """

    kind: ClassVar[Literal["relabel"]] = "relabel"
    positions: tuple[int, ...] | None
    labels: tuple[int, ...]

    def __init__(self, labels: Mapping[int, int] | Iterable[int]) -> None:
        positions = None
        values: Iterable[int] = labels
        if isinstance(labels, Mapping):
            positions = as_positions(self.kind, labels.keys())
            values = labels.values()
        found = as_list(self.kind, values, "new labels", "relabel({17: 4})")
        new = tuple(as_integer(self.kind, item, "new label") for item in found)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "labels", new)

    def describe(self, names: Sequence[str] | None = None) -> str:
        """Return for instance ``relabel 17 to 4 (Coat)``."""
        if self.positions is None:
            return f"relabel everything in the loader ({len(self.labels)} samples)"
        shown = [
            f"{position} to {label}"
            + (f" ({names[label]})" if names is not None and label < len(names) else "")
            for position, label in zip(self.positions, self.labels, strict=True)
        ]
        return f"relabel {shortened(shown)}"

    def to_json(self) -> JSON:
        """Return ``{"goal": "relabel", "positions": [...] or None, "labels": [...]}``."""
        listed = None if self.positions is None else list(self.positions)
        return {"goal": self.kind, "positions": listed, "labels": list(self.labels)}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """Build the goal from what ``to_json`` returned."""
        positions, labels = record.get("positions"), record.get("labels")
        if positions is None:
            return cls(labels)  # type: ignore[arg-type]  # checked by the constructor
        pair = isinstance(positions, list) and isinstance(labels, list)
        if not pair or len(positions) != len(labels):  # type: ignore[arg-type]  # checked by pair
            raise BadTarget(
                "Goal.from_json(record): expected two lists of one length under 'positions' and "
                f"'labels', found {positions!r} and {labels!r}; pass what to_json() returned"
            )
        return cls(dict(zip(positions, labels, strict=True)))  # type: ignore[call-overload]  # lists


_KINDS: dict[str, type[Goal]] = {
    made.kind: made for made in (Classes, Instances, Relabel, Depoison)
}


def resolve_classes(
    goal: Classes, num_classes: int, names: Sequence[str] | None
) -> tuple[int, ...]:
    """Return the class indices that a goal names, in its order.

    Args:
        goal: indices and names.
        num_classes: width of the model's logits.
        names: class names in label order, or ``None`` when none are known.

    Raises:
        BadTarget: a name is unknown or ambiguous, an index is out of range, a class is named
            twice, or every class is named.
    """
    found = tuple(resolve(item, names) if isinstance(item, str) else item for item in goal.classes)
    for index, item in zip(found, goal.classes, strict=True):
        if index >= num_classes:
            named = f"{item!r}, which is class {index}" if isinstance(item, str) else f"{index}"
            raise BadTarget(
                f"classes: expected classes from 0 to {num_classes - 1}, because the model has "
                f"{num_classes} outputs, found {named}; count classes from 0, or check that model "
                "and data belong together"
            )
    refuse_repeats("classes", found)
    if len(found) == num_classes:
        raise BadTarget(
            f"classes: expected at least one class to be kept, found all {num_classes} of the "
            "model's classes to be forgotten; leave out the classes to keep"
        )
    return found


__all__ = [
    "Classes",
    "Depoison",
    "Goal",
    "Instances",
    "Relabel",
    "class_names",
    "resolve_classes",
]
