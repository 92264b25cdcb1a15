"""The confusion matrix of many classes: the cells that are not 0, of which samples have few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """A confusion matrix by row share, without its zeros: at most one cell a sample.

    Args:
        size: number of classes.
        true: (cells,) int64 rows.
        predicted: (cells,) int64 columns.
        share: (cells,) float64 shares of the row.
    """

    size: int
    true: Tensor
    predicted: Tensor
    share: Tensor

    @classmethod
    def counted(cls, labels: Tensor, predicted: Tensor, size: int) -> Cells:
        """Count predictions by true class.

        Args:
            labels: (samples,) int64 true classes.
            predicted: (samples,) int64 predicted classes.
            size: number of classes.
        """
        pairs, counts = torch.unique(labels * size + predicted, return_counts=True)
        true = pairs // size
        return cls(size, true, pairs % size, counts.double() / torch.bincount(labels)[true])

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> Cells:
        """Take the cells of a whole matrix (classes, classes)."""
        true, predicted = torch.nonzero(matrix, as_tuple=True)
        return cls(len(matrix), true, predicted, matrix[true, predicted])

    def matrix(self, classes: Sequence[int] | None = None) -> Tensor:
        """Return the whole matrix, or the part of some classes in their order, with its zeros."""
        chosen = range(self.size) if classes is None else classes
        place = torch.full((self.size,), -1)
        place[torch.tensor(list(chosen), dtype=torch.int64)] = torch.arange(len(chosen))
        rows, columns = place[self.true], place[self.predicted]
        inside = (rows >= 0) & (columns >= 0)
        part = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)
        part[rows[inside], columns[inside]] = self.share[inside]
        return part

    def change(self, other: Cells | None) -> Tensor:
        """Return the sum of absolute differences of each row, to zeros without another matrix."""
        keys, shares = self.keys, self.share
        if other is not None:
            keys, shares = torch.cat([keys, other.keys]), torch.cat([shares, -other.share])
        cells, which = torch.unique(keys, return_inverse=True)
        gaps = torch.zeros(len(cells), dtype=torch.float64).index_add(0, which, shares).abs()
        return torch.zeros(self.size, dtype=torch.float64).index_add(0, cells // self.size, gaps)

    @property
    def keys(self) -> Tensor:
        """One number for each cell, (cells,): its place in the flattened matrix."""
        return self.true * self.size + self.predicted

    def to_json(self) -> dict[str, int | list[int] | list[float]]:
        """Return the number of classes, and rows, columns and shares as lists of one length."""
        return {
            "size": self.size,
            "true": self.true.tolist(),
            "predicted": self.predicted.tolist(),
            "share": self.share.tolist(),
        }
