"""Where samples stand in the data sets behind a loader, and whether two loaders share some."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from forgetkit.data.loaders import covered, reading_of
from forgetkit.data.randomness import random_state_kept
from forgetkit.errors import DataError
from forgetkit.types import Place


def check_disjoint(loader: object, forget: Tensor, retain: object, kept: Tensor) -> None:
    """Raise ``DataError`` when samples to forget are found again in the data to keep.

    Args:
        loader: the main loader.
        forget: (samples,) positions of D_f in its data set.
        retain: the loader of the data to keep.
        kept: (samples,) positions in its data set.
    """
    lost, left = origins(loader, forget), origins(retain, kept)
    if not lost or not left or lost[-1][0] is not left[-1][0]:
        return
    shared = int(torch.isin(left[-1][1], lost[-1][1]).sum())
    if shared:
        raise DataError(
            f"retain: expected data without the samples to forget, found {shared} of them in it "
            "again; remove them, or leave retain out when the main loader holds the rest already"
        )


def in_common(one: object, other: object) -> str:
    """Say what two loaders are known to share; empty where they share nothing, or nobody knows.

    The same loader, or samples at the same positions of one data set. Copies of a data set, and
    two that read the same files, are not found.
    """
    if one is other:
        return "the same loader"
    nothing = torch.empty(0, dtype=torch.int64)
    datasets = [found[-1][0] for each in (one, other) if (found := origins(each, nothing))]
    if len(datasets) < 2 or datasets[0] is not datasets[1]:
        return ""
    if reading_of(one) is None or reading_of(other) is None:
        return "the same data set"
    with random_state_kept():
        rows = [origins(each, covered(each, "loader"))[-1][1] for each in (one, other)]
    shared = int(torch.isin(rows[0].unique(), rows[1]).sum())
    return f"{shared} of the same samples" if shared else ""


def check_held_out(name: str, held_out: object, others: dict[str, object]) -> None:
    """Raise ``DataError`` when data that should be apart share samples with others.

    Args:
        name: of the argument.
        held_out: its loader.
        others: loaders by the name of their argument, ``None`` where there is none.
    """
    for other, loader in others.items():
        found = "" if loader is None else in_common(held_out, loader)
        if found:
            raise DataError(
                f"{name}: expected other samples than those of {other}, found {found} in both, on "
                "which figures are too good; cut the data in parts that share nothing, with "
                "torch.utils.data.random_split for instance"
            )


def origins(loader: object, positions: Tensor) -> list[tuple[object, Tensor]]:
    """Return a loader's data set, the one that it is a subset of, ..., with the positions in each.

    A stream has none.
    """
    if isinstance(loader, DataLoader):
        dataset: object = loader.dataset
    elif hasattr(loader, "__getitem__") and not isinstance(loader, (list, tuple)):
        dataset = loader
    else:
        return []
    found = [(dataset, positions)]
    while isinstance(dataset, Subset):
        positions = torch.as_tensor(np.asarray(dataset.indices))[positions]
        dataset = dataset.dataset
        found.append((dataset, positions))
    return found


def places(loader: object, positions: Tensor, drawn: int) -> tuple[Place, ...]:
    """Return where samples stand, from the loader's own data set down to that under all subsets.

    Args:
        loader: the main loader.
        positions: (samples,) positions of D_f in its data set or stream.
        drawn: samples that the loader gives, the size of a stream.
    """
    found = [
        Place(len(dataset), rows) for dataset, rows in origins(loader, positions)
        if isinstance(dataset, Sized)
    ]  # fmt: skip
    return tuple(found) or (Place(drawn, positions),)


def taken(found: tuple[Place, ...], rows: Tensor | None) -> tuple[Place, ...]:
    """Return the places of some of the samples, or of all."""
    return found if rows is None else tuple(Place(p.size, p.positions[rows]) for p in found)
