"""Labels as tensors: what is accepted, and what a data set knows without decoding images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from forgetkit.data.batches import LABEL_KEYS
from forgetkit.errors import DataError

_ATTRIBUTES = ("targets", "labels", "_labels", "y")
_LIBRARIES = ("torch", "torchvision", "forgetkit")
_LISTINGS = ("samples", "imgs", "_samples")  # (path, label) pairs


def normalised(labels: object, num_classes: int | None, where: str) -> Tensor:
    """Return labels as (samples,) int64 class indices or (samples, classes) float32 of 0 and 1.

    A model with one output has one yes-or-no label: (samples,) of 0 and 1 is taken as a column.

    Args:
        labels: a tensor, an array or a list.
        num_classes: width of a multi-label matrix; ``None`` where none is expected.
        where: start of an error message.

    Raises:
        DataError: the labels are not numbers, not whole, or have a shape that is neither.
    """
    try:
        found = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: expected numbers as labels, found {type(labels).__name__} that holds "
            "something else; map class names to numbers with the data set's classes"
        ) from error
    found = found.detach().cpu()
    if found.ndim == 1 and num_classes == 1:
        found = found[:, None]
    if found.ndim == 2 and found.shape[1] == num_classes:
        return _multi_label(found, where)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found.flatten()
    if found.ndim != 1:
        raise DataError(
            f"{where}: expected labels of shape (batch,), or (batch, {num_classes or 'classes'}) "
            f"with 0 and 1 for multi-label, found the shape {tuple(found.shape)}; soft labels as "
            "MixUp and CutMix make them cannot be used: take them out of the collate_fn"
        )
    fractions = found.is_floating_point() and not torch.equal(found, found.round())
    whole = not (found.is_complex() or fractions)
    if not whole:
        raise DataError(
            f"{where}: expected whole numbers as labels, found {found.tolist()[:4]}; pass class "
            "indices"
        )
    return found.to(torch.int64)


def _multi_label(found: Tensor, where: str) -> Tensor:
    matrix = found.to(torch.float32)
    if not bool(((matrix == 0) | (matrix == 1)).all()):
        raise DataError(
            f"{where}: expected a multi-label matrix of 0 and 1, found other values, for instance "
            f"{matrix[(matrix != 0) & (matrix != 1)][0].item():.4g}; soft labels as MixUp, CutMix "
            "and label smoothing make them cannot be used: take them out of the data"
        )
    return matrix


def check_range(labels: Tensor, positions: Tensor, num_classes: int, name: str) -> None:
    """Raise ``DataError`` unless every class index is in [0, num_classes)."""
    if labels.ndim == 2:
        return
    outside = (labels < 0) | (labels >= num_classes)
    if not bool(outside.any()):
        return
    first = int(torch.nonzero(outside)[0])
    raise DataError(
        f"{name}: expected labels from 0 to {num_classes - 1}, because the model has {num_classes} "
        f"outputs, found {int(outside.sum())} outside, the first of them {int(labels[first])} at "
        f"position {int(positions[first])}; remove these samples, renumber the labels, or pass "
        "the model that belongs to them"
    )


def stored(dataset: object, num_classes: int) -> Tensor | None:
    """Return the labels that a data set holds beside its images, or ``None``.

    Known are ``Subset``, ``ConcatDataset``, ``TensorDataset``, the columns of ``datasets``, and
    attributes that torchvision's data sets have. Whether ``dataset[i]`` really returns these
    labels is for the caller to check.
    """
    found = _raw(dataset, num_classes)
    if found is None or not hasattr(dataset, "__len__"):
        return None
    try:
        labels = normalised(found, num_classes, "dataset")
    except DataError:  # an attribute of that name holds something else: read the samples instead
        return None
    return labels if len(labels) == len(dataset) else None


def by_library(dataset: object) -> bool:
    """Return whether a data set is a library's, down to what it is a part of.

    Those return the labels that they list. A class of the user's own may change one of the two, and
    so may a transform of the datasets library, which no look at two samples would tell.
    """
    if isinstance(dataset, Subset):
        return by_library(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return all(by_library(part) for part in dataset.datasets)
    return type(dataset).__module__.partition(".")[0] in _LIBRARIES


def _raw(dataset: object, num_classes: int) -> object | None:
    if isinstance(dataset, Subset):
        inner = stored(dataset.dataset, num_classes)
        return None if inner is None else inner[torch.as_tensor(np.asarray(dataset.indices))]
    if isinstance(dataset, ConcatDataset):
        parts = [stored(part, num_classes) for part in dataset.datasets]
        whole = [part for part in parts if part is not None]
        same = len(whole) == len(parts) and len({part.ndim for part in whole}) == 1
        return torch.cat(whole) if same else None
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) == 2 else None
    if hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):
        return _column(dataset)
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in _ATTRIBUTES:
        value = getattr(dataset, name, None)
        if isinstance(value, (Tensor, np.ndarray)) or (isinstance(value, Sequence) and value):
            return value
    for name in _LISTINGS:
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and pairs and _is_pair(pairs[0]):
            return [pair[1] for pair in pairs]
    return None


def _is_pair(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2


def _column(dataset: object) -> object | None:
    """Return the label column of a data set of the ``datasets`` library; no image is decoded."""
    names = getattr(dataset, "column_names", None)
    key = next((key for key in LABEL_KEYS if isinstance(names, list) and key in names), None)
    if key is None:
        return None
    # a transform set by the user may need the images, and a column may be lazy: hence [:]
    plain = getattr(dataset, "with_format")("numpy", columns=[key])  # noqa: B009
    values: object = plain[key][:]
    return values
