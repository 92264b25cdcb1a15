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

    @property
    def area(self) -> int:
        """Pixels of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def inside(self, inputs: Tensor) -> int:
        """Return how many of the kernel's pixels ever lie on the input: the others are padding."""
        before = (self.padding[2], self.padding[0])
        found = 1
        for axis, places in enumerate(self.places(inputs)):
            starts = torch.arange(places) * self.stride[axis] - before[axis]
            pixels = starts[:, None] + torch.arange(self.kernel[axis]) * self.dilation[axis]
            lies = (pixels >= 0) & (pixels < inputs.shape[axis - 2])
            found *= int(lies.any(dim=0).sum())
        return found

    def pixels(self, inputs: Tensor) -> Pixels:
        """Return where the pixels of every patch of an image lie.

        Args:
            inputs: (images, channels, height, width).
        """
        places = self.places(inputs)
        before = (self.padding[2], self.padding[0])
        device = inputs.device
        down, right = (
            torch.arange(n, device=device)[:, None] * s - b + d * torch.arange(k, device=device)
            for n, s, b, d, k in zip(
                places, self.stride, before, self.dilation, self.kernel, strict=True
            )
        )
        high, wide = inputs.shape[2:]
        above, beside = (down < 0) | (down >= high), (right < 0) | (right >= wide)
        outside = above[:, None, :, None] | beside[None, :, None, :]
        rows, columns = down.clamp(0, high - 1), right.clamp(0, wide - 1)
        return Pixels(
            rows.repeat_interleave(places[1], dim=0)[:, :, None],
            columns.repeat(places[0], 1)[:, None],
            outside.flatten(0, 1)[..., None],
        )


@dataclass(frozen=True)
class Pixels:
    """Where the pixels of patches lie.

    Args:
        down: (patches, kh, 1) rows of pixels.
        right: (patches, 1, kw) columns of pixels.
        outside: (patches, kh, kw, 1) whether the pixel is padding.
    """

    down: Tensor
    right: Tensor
    outside: Tensor

    def at(self, place: Tensor) -> Pixels:
        """Return those of some patches, counted along rows."""
        return Pixels(self.down[place], self.right[place], self.outside[place])

    def of(self, inputs: Tensor, image: Tensor) -> Tensor:
        """Return the patches of some images, (patches, channels, kh, kw), reading no other pixel.

        Args:
            inputs: (images, channels, height, width).
            image: (patches,) which image each patch is of.
        """
        found = inputs.permute(0, 2, 3, 1)[image[:, None, None], self.down, self.right]
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
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value  # what layers pass; the checks of protocols below take their time
    if isinstance(value, SupportsIndex):
        return index(value), index(value)
    if isinstance(value, (tuple, list)) and len(value) in (1, 2):
        return int(value[0]), int(value[-1])
    raise TypeError(f"expected a number or a pair, found {value!r}")
