"""Where samples come from, in the words of their data set."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path


def described(loader: object) -> str:
    """Return where a loader's samples come from, as far as its data set tells.

    Told are the data set's class, its ``root`` or name, and its ``split`` or ``train``, through
    ``Subset`` and ``ConcatDataset``. What tells none of these is said to be given by the caller.
    """
    dataset = getattr(loader, "dataset", loader)
    indices, whole = getattr(dataset, "indices", None), getattr(dataset, "dataset", None)
    if whole is not None and isinstance(indices, Sized):  # Subset
        return f"{len(indices)} samples of {described(whole)}"
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, list) and parts:  # ConcatDataset
        return " with ".join(map(described, parts))
    told = _told(dataset)
    name = type(dataset).__name__
    return f"{name} {', '.join(told)}" if told else f"given by the caller ({name})"


def _told(dataset: object) -> list[str]:
    root, split, train = (getattr(dataset, key, None) for key in ("root", "split", "train"))
    name = getattr(getattr(dataset, "info", None), "dataset_name", None)  # of the datasets library
    told = [name] if isinstance(name, str) and name else []
    if isinstance(root, (str, Path)) and str(root):
        told.append(f"in {root}")
    if isinstance(train, bool) and not isinstance(split, str):
        split = "train" if train else "test"
    if isinstance(split, str) and split:
        told.append(f"split {split}")
    return told
