"""Class names: where they are found, and how a name becomes an index."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from torch import nn

from forgetkit.data.batches import LABEL_KEYS
from forgetkit.errors import BadTarget, DataError


def class_names(model: nn.Module, loader: object) -> list[str] | None:
    """Return class names in label order, or ``None`` when neither model nor data have any.

    They come from ``model.config.id2label``, then from the data set (``loader.dataset`` or the
    loader itself, through ``Subset`` and ``ConcatDataset``): its ``classes``, then its
    ``features``. The placeholders ``LABEL_0, LABEL_1, ...`` that transformers fills in give way to
    names of the data set.

    Raises:
        DataError: model and data set have the same names in different orders.
    """
    own, found = _names_of_model(model), _names_of_data(loader)
    if own is None or found is None:
        return own or found
    if all(name == f"LABEL_{index}" for index, name in enumerate(own)):
        return found
    left, right = ([_folded(name) for name in names] for names in (own, found))
    if left != right and sorted(left) == sorted(right):
        index = next(i for i, pair in enumerate(zip(left, right, strict=True)) if len({*pair}) == 2)
        raise DataError(
            f"loader: expected the data set's classes in the order of model.config.id2label, found "
            f"class {index} to be {found[index]!r} in the data and {own[index]!r} in the model; "
            "renumber the labels of the data set"
        )
    return own


def resolve(name: str, names: Sequence[str] | None) -> int:
    """Return the index of the class that is called ``name``, whatever its case.

    A name that lists synonyms ("tench, Tinca tinca") answers to each of them.

    Raises:
        BadTarget: no class or several classes have this name, or no names are known.
    """
    if names is None:
        raise BadTarget(
            f"classes: expected class numbers, because neither model.config.id2label nor the data "
            f"set names its classes; found the name {name!r}; pass the number of the class"
        )
    wanted = _folded(name)
    exact = [index for index, known in enumerate(names) if known.strip() == name.strip()]
    whole = [index for index, known in enumerate(names) if _folded(known) == wanted]
    parts = [
        index
        for index, known in enumerate(names)
        if wanted in [_folded(part) for part in known.split(",")]
    ]
    found = exact or whole or parts
    if len(found) == 1:
        return found[0]
    if found:
        raise BadTarget(
            f"classes: expected a name that belongs to one class, found {name!r} for the classes "
            f"{', '.join(map(str, found))}; pass the number of the class"
        )
    by_folded = {_folded(known): known for known in names}
    near = [by_folded[match] for match in difflib.get_close_matches(wanted, by_folded, n=3)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "pass one of these names."
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise BadTarget(
        f"classes: expected the name of a class, found {name!r}, which is none; {hint} "
        f"The names are: {listed}"
    )


def _folded(name: str) -> str:
    return name.strip().casefold()


def _names_of_model(model: nn.Module | None) -> list[str] | None:
    while model is not None:
        listed = _listed(getattr(getattr(model, "config", None), "id2label", None))
        if listed is not None:
            return listed
        # DistributedDataParallel keeps the model in `module`, torch.compile in `_orig_mod`
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        model = inner if isinstance(inner, nn.Module) else None
    return None


def _listed(id2label: object) -> list[str] | None:
    """Return the values of ``{0: name, 1: name, ...}`` in order; JSON makes the keys strings."""
    if not isinstance(id2label, Mapping) or not id2label:
        return None
    by_index = {str(index): str(name) for index, name in id2label.items()}
    names = [by_index.get(str(index)) for index in range(len(by_index))]
    return None if None in names else [name for name in names if name is not None]


def _names_of_data(loader: object) -> list[str] | None:
    dataset = getattr(loader, "dataset", loader)
    while dataset is not None:
        classes = getattr(dataset, "classes", None)
        if isinstance(classes, Sequence) and not isinstance(classes, str) and classes:
            return [str(name) for name in classes]
        features = getattr(dataset, "features", None)
        if isinstance(features, Mapping):
            for key in LABEL_KEYS:
                names = getattr(features.get(key), "names", None)
                if names:
                    return [str(name) for name in names]
        parts = getattr(dataset, "datasets", None)  # ConcatDataset
        dataset = getattr(dataset, "dataset", parts[0] if isinstance(parts, list) else None)
    return None
