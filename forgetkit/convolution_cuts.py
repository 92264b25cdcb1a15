"""How a convolution cuts its input into patches, told from the call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Cut:
    """How a convolution cuts patches.

    Args:
        kernel: height and width.
        stride: of the patches.
        dilation: of the kernel.
        padding: left, right, top, bottom, with zeros.
        groups: blocks of channels, each with rows of its own.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    groups: int

    def dense(self) -> Cut:
        """Return the cut with a patch at every place, of neighbouring pixels."""
        return replace(self, stride=(1, 1), dilation=(1, 1))

    def views(self, inputs: Tensor) -> Tensor:
        """Return all patches without a copy: (images, channels, down, across, kh, kw)."""
        padded = functional.pad(inputs, self.padding) if any(self.padding) else inputs
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        cut = padded.unfold(2, spans[0], self.stride[0]).unfold(3, spans[1], self.stride[1])
        return cut[..., :: self.dilation[0], :: self.dilation[1]]

    def places(self, inputs: Tensor) -> tuple[int, int]:
        """Return how many patches there are, down and across."""
        left, right, top, bottom = self.padding
        sizes = (inputs.shape[-2] + top + bottom, inputs.shape[-1] + left + right)
        down, across = (
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        )
        return down, across

    def pixels(self, inputs: Tensor, image: Tensor, place: Tensor) -> Pixels:
        """Return where some of the patches lie.

        Args:
            inputs: (images, channels, height, width).
            image: (rows,) which image.
            place: (rows,) which patch of it, counted along rows.
        """
        across = self.places(inputs)[1]
        starts = (place // across, place % across)
        before = (self.padding[2], self.padding[0])
        down, right = (
            start[:, None] * s - b + d * torch.arange(k, device=start.device)
            for start, s, b, d, k in zip(
                starts, self.stride, before, self.dilation, self.kernel, strict=True
            )
        )
        high, wide = inputs.shape[2:]
        outside = ((down < 0) | (down >= high))[:, :, None] | ((right < 0) | (right >= wide))[
            :, None
        ]
        rows, columns = down.clamp(0, high - 1), right.clamp(0, wide - 1)
        return Pixels(
            image[:, None, None], rows[:, :, None], columns[:, None], outside[..., None]
        )  # fmt: skip


@dataclass(frozen=True)
class Pixels:
    """Places of patches in a batch of images.

    Args:
        image: (rows, 1, 1) which image.
        down: (rows, kh, 1) rows of pixels.
        right: (rows, 1, kw) columns of pixels.
        outside: (rows, kh, kw, 1) whether the pixel is padding.
    """

    image: Tensor
    down: Tensor
    right: Tensor
    outside: Tensor

    def of(self, inputs: Tensor) -> Tensor:
        """Return the patches, (rows, channels, kh, kw), reading no other pixel."""
        found = inputs.permute(0, 2, 3, 1)[self.image, self.down, self.right]
        return found.masked_fill_(self.outside, 0.0).permute(0, 3, 1, 2)


def cut_of(weight: Tensor, args: tuple[object, ...], named: Mapping[str, object]) -> Cut:
    """Return how a call of ``functional.conv2d`` with these arguments cuts its input."""

    def argument(place: int, name: str, default: object) -> object:
        return args[place] if len(args) > place else named.get(name, default)

    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    stride = _pair(argument(3, "stride", 1))
    dilation = _pair(argument(5, "dilation", 1))
    groups = argument(6, "groups", 1)
    padding = argument(4, "padding", 0)
    if padding == "same":
        (top, bottom), (left, right) = (
            (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
            for k, d in zip(kernel, dilation, strict=True)
        )
    else:
        high, wide = _pair(0 if padding == "valid" else padding)
        left, right, top, bottom = wide, wide, high, high
    return Cut(kernel, stride, dilation, (left, right, top, bottom), index(groups))  # type: ignore[arg-type]  # torch took it


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, SupportsIndex):
        return index(value), index(value)
    if isinstance(value, (tuple, list)) and len(value) in (1, 2):
        return int(value[0]), int(value[-1])
    raise TypeError(f"expected a number or a pair, found {value!r}")
