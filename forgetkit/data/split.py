"""Loader and goal in, D_f and D_r out; everything is checked before any weight moves."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetkit.data.labels import check_range
from forgetkit.data.loaders import Loader
from forgetkit.data.overlap import check_disjoint, places
from forgetkit.data.randomness import random_state_kept
from forgetkit.data.sources import Membership, Source, read_all, read_source
from forgetkit.errors import BadTarget, DataError
from forgetkit.goal import Classes, Goal, Instances, Relabel
from forgetkit.listed import shortened
from forgetkit.types import SampleSet, Sets


def split(
    loader: Loader,
    goal: Goal,
    *,
    num_classes: int,
    forget_classes: tuple[int, ...],
    retain: Loader | None = None,
    validate: Loader | None = None,
    need_retain: bool = False,
    spare: int | None = None,
    seed: int = 0,
) -> Sets:
    """Read what there is to forget and to keep; leave loaders and random states as they were.

    Args:
        loader: what ``run`` was given.
        goal: which samples are D_f.
        num_classes: width of the model's logits.
        forget_classes: resolved class indices, empty unless the goal is ``classes``.
        retain: data to keep; replaces what the loader holds beside D_f.
        validate: data to measure on.
        need_retain: whether a missing D_r is an error.
        spare: where D_r is not read, the largest number of retained samples to keep of a loader
            that can be read only once; ``None`` where D_r is read, and kept whole.
        seed: what the draw of those samples depends on.

    Returns:
        The sets. ``retain`` is ``None`` where nothing is left beside D_f and none was given, and
        where only a few samples are kept of a stream, which are then in ``spare``. The forget set
        of the goal ``relabel`` has the old labels in ``labels`` and the new ones in
        ``new_labels``.

    Raises:
        BadTarget: D_f is empty, positions are out of range, or new labels do not fit.
        DataError: samples or labels cannot be used, or D_r is needed and missing.
    """
    with random_state_kept():
        wanted = _membership(goal, forget_classes)
        few = spare if retain is None else 0
        source = read_source(loader, num_classes, "loader", wanted, spare=few, seed=seed)
        check_range(source.labels, source.positions, num_classes, "loader")
        _check_positions(goal, source)
        chosen = wanted(source.labels, source.positions)
        if not bool(chosen.any()):
            raise BadTarget(_nothing_to_forget(goal, source))
        forget = source.part(chosen)
        if isinstance(goal, Relabel):
            forget = forget.relabelled(_new_labels(goal, forget, num_classes))
        kept: SampleSet | None
        if retain is not None:
            kept = _explicit(retain, num_classes, "retain", forget.labels.ndim)
            _check_retain(kept, forget_classes)
            check_disjoint(loader, forget.positions, retain, kept.positions)
        else:
            kept = source.part(~chosen) if source.complete and not bool(chosen.all()) else None
        if kept is None and need_retain:
            raise DataError(
                "retain: expected data to keep, because this method reads it, found a loader "
                "that holds samples to forget only; pass it with .retain(loader), or choose a "
                "method that needs the forget set alone"
            )
        kind = forget.labels.ndim
        validation = (
            None if validate is None else _explicit(validate, num_classes, "validate", kind)
        )
    where = places(loader, forget.positions, len(source.positions))
    return Sets(forget, kept, validation, where, source.spare)


def _membership(goal: Goal, forget_classes: tuple[int, ...]) -> Membership:
    """Return the function that says which of some samples belong to D_f."""
    if isinstance(goal, Classes):
        classes = torch.tensor(forget_classes, dtype=torch.int64)

        def has_class(labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG001
            if labels.ndim == 2:
                return labels[:, classes].any(dim=1)
            return torch.isin(labels, classes)

        return has_class
    listed = goal.positions if isinstance(goal, (Instances, Relabel)) else None
    if listed is None:
        return lambda labels, positions: torch.ones(len(positions), dtype=torch.bool)  # noqa: ARG005
    wanted = torch.tensor(listed, dtype=torch.int64)
    return lambda labels, positions: torch.isin(positions, wanted)  # noqa: ARG005


def _check_positions(goal: Goal, source: Source) -> None:
    listed = goal.positions if isinstance(goal, (Instances, Relabel)) else None
    if listed is None:
        return
    wanted = torch.tensor(listed, dtype=torch.int64)
    missing = wanted[~torch.isin(wanted, source.positions)]
    if len(missing) == 0:
        return
    shown = shortened(missing.tolist())
    count, highest = len(source.positions), int(source.positions.max())
    what = "loader.dataset" if source.indexed else "the stream of batches"
    expected = f"positions in {what}, which has {count} samples"
    found = f"{len(missing)} beyond the last one ({highest})"
    if count <= highest:
        expected = f"positions that the loader's sampler draws, {count} of those up to {highest}"
        found = f"{len(missing)} that are not drawn by the sampler"
    raise BadTarget(
        f"{goal.kind}: expected {expected}, found {found}: {shown}; positions count the samples "
        "from 0 in the order of the data set"
    )


def _new_labels(goal: Relabel, forget: SampleSet, num_classes: int) -> Tensor:
    """Return the corrected labels in the order of D_f."""
    if forget.labels.ndim == 2:
        raise BadTarget(
            "relabel: expected samples with one label each, found a multi-label data set; pass "
            "data whose labels are class indices"
        )
    if len(goal.labels) != len(forget):
        raise BadTarget(
            f"relabel: expected one new label for each of the {len(forget)} samples of the loader, "
            f"found {len(goal.labels)}; pass a mapping from position to label to correct a few"
        )
    new = torch.tensor(goal.labels, dtype=torch.int64)
    if goal.positions is not None:
        by_position = dict(zip(goal.positions, goal.labels, strict=True))
        new = torch.tensor([by_position[position] for position in forget.positions.tolist()])
    if bool((outside := new >= num_classes).any()):
        first = int(torch.nonzero(outside)[0])
        raise BadTarget(
            f"relabel: expected new labels from 0 to {num_classes - 1}, because the model has "
            f"{num_classes} outputs, found {int(new[first])} for position "
            f"{int(forget.positions[first])}; count classes from 0"
        )
    if bool((same := new == forget.labels).any()):
        first = int(torch.nonzero(same)[0])
        raise BadTarget(
            f"relabel: expected new labels that differ from the old ones, found {int(same.sum())} "
            f"that are the same, the first of them {int(new[first])} at position "
            f"{int(forget.positions[first])}; leave out samples whose label is right"
        )
    return new


def _explicit(loader: Loader, num_classes: int, name: str, kind: int) -> SampleSet:
    """Return everything in a further loader, whose labels must be of the main loader's kind."""
    samples = read_all(loader, num_classes, name)
    check_range(samples.labels, samples.positions, num_classes, name)
    if samples.labels.ndim != kind:
        words = {1: "class indices", 2: "multi-label rows of 0 and 1"}
        raise DataError(
            f"{name}: expected {words[kind]}, as the main loader has them, found "
            f"{words[samples.labels.ndim]}; make both loaders return one kind of label"
        )
    return samples


def _check_retain(retain: SampleSet, forget_classes: tuple[int, ...]) -> None:
    if not forget_classes:
        return
    inside = _membership(Classes(forget_classes), forget_classes)(retain.labels, retain.positions)
    if bool(inside.any()):
        raise DataError(
            f"retain: expected no samples of the forgotten classes "
            f"{', '.join(map(str, forget_classes))}, found {int(inside.sum())} of {len(retain)}; "
            "remove them, or leave retain out when the main loader holds the rest already"
        )


def _nothing_to_forget(goal: Goal, source: Source) -> str:
    labels = source.labels
    present = labels.any(dim=0).nonzero().flatten() if labels.ndim == 2 else torch.unique(labels)
    shown = shortened(present.tolist(), 20)
    return (
        f"{goal.kind}: expected samples to forget ({goal.describe()}), found none among the "
        f"{len(labels)} samples of the loader, whose labels are {shown}; pass a loader that holds "
        "them, or name classes that it holds"
    )
