"""Finding the tensors of a patch in a model or a checkpoint, by name and then by content.

Names alone do not suffice: transformers 5 renames tensors while loading, so that a ViT file's
``...layer.0.attention.attention.query.weight`` is ``...layers.0.attention.q_proj.weight`` in the
model. A tensor that is missing under its name is looked for by its digest, which is as good as a
name because a wrong tensor cannot have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from forgetkit.fingerprint import TensorBits, TensorPrint, hash_all, plain_names
from forgetkit.patch.header import Entry


@dataclass
class Placement:
    """Where the tensors of a patch are, and what stands in the way.

    Args:
        names: name in the target -> name in the patch.
        problems: one phrase a tensor that is absent, different or ambiguous.
        spare: names in the target that stand for no tensor of the patch.
    """

    names: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    spare: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether every tensor of the patch was found with the expected bits."""
        return not self.problems


def place(
    entries: Mapping[str, Entry], found: Mapping[str, TensorBits], *, forward: bool
) -> Placement:
    """Find every tensor of a patch in a target.

    Args:
        entries: the patch's tensors by name.
        found: the target's tensors by name; names of one tied tensor share one object.
        forward: expect the state before the edit (to apply), else the one after (to revert).
    """
    placement = Placement()
    by_plain_name = {short: name for name, short in plain_names(found).items()}
    hash_all({id(found[n]): found[n] for n in _named(entries, by_plain_name)}.values())
    unnamed: list[str] = []
    for name, entry in entries.items():
        present = [by_plain_name[n] for n in (name, *entry.aliases) if n in by_plain_name]
        if not present:
            unnamed.append(name)
            continue
        for there in present:
            difference = _difference(entry.expected(forward), found[there])
            if difference:
                placement.problems.append(f"{name}: {difference}")
                break
            placement.names[there] = name
    claimed = {id(found[name]) for name in placement.names}
    pool = [name for name in found if id(found[name]) not in claimed]
    if not placement.problems:
        _place_by_content(placement, entries, found, unnamed, pool, forward=forward)
    placement.spare = [name for name in pool if name not in placement.names]
    return placement


def shares_names(entries: Mapping[str, Entry], names: Iterable[str]) -> bool:
    """Return whether a tensor of the patch is among the names of a target, fitting or not."""
    return bool(_named(entries, {short: name for name, short in plain_names(names).items()}))


def _named(entries: Mapping[str, Entry], by_plain_name: Mapping[str, str]) -> list[str]:
    names = (n for name, entry in entries.items() for n in (name, *entry.aliases))
    return [by_plain_name[n] for n in names if n in by_plain_name]


def _difference(expected: TensorPrint, there: TensorBits) -> str:
    if expected.dtype != there.dtype:
        return f"dtype {there.dtype} instead of {expected.dtype}"
    if expected.shape != there.shape:
        return f"shape {there.shape} instead of {expected.shape}"
    if expected != there.fingerprint:
        return "other values"
    return ""


def _place_by_content(
    placement: Placement,
    entries: Mapping[str, Entry],
    found: Mapping[str, TensorBits],
    unnamed: list[str],
    pool: list[str],
    *,
    forward: bool,
) -> None:
    """Add to ``placement`` the tensors that the target holds under another name."""
    wanted: dict[TensorPrint, list[str]] = {}
    for name in unnamed:
        wanted.setdefault(entries[name].expected(forward), []).append(name)
    if not wanted:
        return
    outlines = {(expected.dtype, expected.shape) for expected in wanted}
    held: dict[TensorPrint, dict[int, str]] = {}
    for name in pool:
        there = found[name]
        if (there.dtype, there.shape) in outlines:  # spare the hashing of what cannot match
            held.setdefault(there.fingerprint, {}).setdefault(id(there), name)
    for expected, names in wanted.items():
        spots = list(held.get(expected, {}).values())
        # Equal tensors are interchangeable only if the edit leaves them equal.
        one_outcome = len({entries[name].expected(not forward) for name in names}) == 1
        changed = any(entries[name].changed for name in names)
        if len(spots) < len(names):
            placement.problems.extend(f"{name}: absent" for name in names)
        elif changed and not (one_outcome and len(spots) == len(names)):
            placement.problems.extend(
                f"{name}: several tensors of other names could be it" for name in names
            )
        else:
            placement.names.update(zip(spots, names, strict=False))
