"""Whether two loaders share samples, as far as their data sets tell."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from forgetkit.errors import DataError


def check_disjoint(loader: object, forget: Tensor, retain: object, kept: Tensor) -> None:
    """Raise ``DataError`` when samples to forget are found again in the data to keep.

    Args:
        loader: the main loader.
        forget: (samples,) positions of D_f in its data set.
        retain: the loader of the data to keep.
        kept: (samples,) positions in its data set.
    """
    root, lost = _origin(loader, forget)
    other, left = _origin(retain, kept)
    if root is None or root is not other:
        return
    shared = int(torch.isin(left, lost).sum())
    if shared:
        raise DataError(
            f"retain: expected data without the samples to forget, found {shared} of them in it "
            "again; remove them, or leave .retain() out when the main loader holds the rest already"
        )


def _origin(loader: object, positions: Tensor) -> tuple[object, Tensor]:
    """Return the data set under all subsets, and the positions in it."""
    if isinstance(loader, DataLoader):
        dataset: object = loader.dataset
    elif hasattr(loader, "__getitem__") and not isinstance(loader, (list, tuple)):
        dataset = loader
    else:
        return None, positions
    while isinstance(dataset, Subset):
        positions = torch.as_tensor(np.asarray(dataset.indices))[positions]
        dataset = dataset.dataset
    return dataset, positions
