"""Several cuts as one tensor with one row a sample."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from forgetkit.errors import DataError


@dataclass(frozen=True)
class Packing:
    """How the cuts of a sample lie in one feature tensor.

    Args:
        shapes: shape of each cut without the batch axis, as recorded.
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def stacked(self) -> bool:
        """Whether the cuts have one shape and are stacked on axis 1."""
        return len(self.shapes) > 1 and len(set(self.shapes)) == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        if self.stacked:
            return (len(self.shapes), *self.shapes[0])
        return (sum(prod(shape) for shape in self.shapes),)

    def pack(self, cuts: list[Tensor]) -> Tensor:
        """Join the cuts: one as it is, equal shapes stacked, others flattened side by side."""
        if len(cuts) == 1:
            return cuts[0]
        if self.stacked:
            return torch.stack(cuts, dim=1)
        return torch.cat([cut.flatten(1) for cut in cuts], dim=1)

    def unpack(self, features: Tensor) -> list[Tensor]:
        """Undo `pack`.

        Raises:
            DataError: when the features are not as wide as the recorded ones.
        """
        if len(self.shapes) == 1:
            return [features]
        if tuple(features.shape[1:]) != self.shape:
            raise DataError(
                f"features should have shape (batch, {', '.join(map(str, self.shape))}), found "
                f"{tuple(features.shape)}; pass what features() returns for inputs of the size "
                "that the model was adapted with."
            )
        if self.stacked:
            return list(features.unbind(1))
        parts = features.split([prod(shape) for shape in self.shapes], dim=1)
        return [
            part.reshape(len(part), *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]
