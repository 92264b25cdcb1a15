"""Second moments of what linear layers and convolutions multiply with their weights.

For a weight W with rows of length d let X (rows, d) hold the layer's inputs: tokens of a linear
layer, patches of a convolution, over all samples and output positions. Only C = X^T X (d, d) is
kept, summed while batches pass through, so memory is O(d^2) a layer whatever the number of images.
Moments of disjoint sets add up; those of a part of the set can be subtracted.

Which rows a thinned layer gets is a function of the image's bits, so the same image gives the same
rows in any set, batch and process, and subtraction stays exact.

Source: Hoang et al., "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference
    with Gradient Projection", WACV 2024, arXiv:2312.04095, section 3.

Differences: rows follow the layer's own stride and dilation, so that they span its gradients (the
    authors' code cuts at every place: ``dense``); sums are float64; thinning is new.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from forgetkit import draws
from forgetkit.convolution_cuts import Cut, Pixels
from forgetkit.errors import DataError
from forgetkit.layer_calls import Call, Watch
from forgetkit.layer_survey import BLOCK, Forward, Layer
from forgetkit.per_sample import wide_type
from forgetkit.types import Inputs

_BUFFERED = 1024  # rows that are gathered before a product: few large ones are quicker
_LARGEST = 1 << 24  # elements of rows that are held at once


@dataclass
class Moments:
    """Sums of one set.

    Args:
        layers: what is measured, by the name of the weight.
        sums: C of each, (groups, width, width) float64, symmetric.
        rows: rows that went into each.
        samples: samples seen.
    """

    layers: dict[str, Layer]
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    samples: int = 0

    def minus(self, part: Moments) -> Moments:
        """Return the moments of the set without a part of it.

        Raises:
            DataError: the part is larger than the set.
        """
        if part.samples > self.samples:
            raise DataError(
                f"statistics: expected at most the {self.samples} samples that they were made of, "
                f"found {part.samples} to take away; pass the statistics of the whole training set"
            )
        return Moments(
            dict(self.layers),
            {
                name: total - part.sums[name].to(total.device) if name in part.sums else total
                for name, total in self.sums.items()
            },
            {name: rows - part.rows.get(name, 0) for name, rows in self.rows.items()},
            self.samples - part.samples,
        )


class Accumulator:
    """Sums moments while a model runs on batches.

    Args:
        weights: the model's parameters by dotted path.
        layers: what to measure.
        double: whether products are float64; else float32, with float64 sums. Keep it on unless
            the machine's double precision is very slow.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], layers: Mapping[str, Layer], *, double: bool = True
    ) -> None:
        self._names = {id(weights[name]): name for name in layers}
        self._dtype = torch.float64 if double else torch.float32
        self._kept: dict[str, list[Tensor]] = {name: [] for name in layers}
        self._waiting = dict.fromkeys(layers, 0)
        self._upper: dict[str, Tensor] = {}
        self._draws = (torch.empty(0), torch.empty(0))
        self._rows: dict[tuple[float, int], tuple[Tensor, Tensor]] = {}
        self._every: dict[tuple[object, ...], Pixels] = {}
        self._patches: dict[tuple[object, ...], tuple[Pixels, Tensor]] = {}
        self._thin = any(layer.taken is not None for layer in layers.values())
        self._moments = Moments(dict(layers), rows=dict.fromkeys(layers, 0))

    @torch.no_grad()
    def add(self, inputs: Inputs, forward: Forward) -> None:
        """Run the model on a batch and take its rows in.

        Args:
            inputs: as the loader gives them: which rows count depends on their bits.
            forward: calls the model, in eval mode.
        """
        first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
        self._moments.samples += len(first)
        if self._thin:
            keys = keys_of(inputs)
            self._draws = (
                draws.uniform(0, "moments", keys), draws.uniform(0, "moments/start", keys)
            )  # fmt: skip
            self._rows, self._patches = {}, {}
        with Watch(self._names, self._see):
            forward(inputs)

    @torch.no_grad()
    def moments(self) -> Moments:
        """Return what was summed; call it once, at the end."""
        for name, kept in self._kept.items():
            if kept:
                self._multiply(name)
        sums = self._moments.sums
        for name, layer in self._moments.layers.items():
            total = self._upper.pop(name, None)
            if total is None:
                total = torch.zeros(layer.groups, layer.width, layer.width, dtype=torch.float64)
            sums[name] = _mirrored(total)
        return self._moments

    def _see(self, call: Call) -> None:
        layer = self._moments.layers[call.name]
        if call.inputs.numel() == 0:
            return
        if layer.dense and call.cut is not None:
            call = replace(call, cut=call.cut.dense())
        with self._exact(call.inputs.device.type):
            parts = self._all(call) if layer.taken is None else self._some(call, layer)
            for rows in parts:
                self._moments.rows[call.name] += rows.shape[1]
                self._kept[call.name].append(rows)
                self._waiting[call.name] += rows.shape[1]
                waiting = self._waiting[call.name]
                if waiting >= _BUFFERED or waiting * layer.width * layer.groups >= _LARGEST:
                    self._multiply(call.name)
                elif _share_memory(rows, call.inputs):  # which the model may overwrite
                    self._kept[call.name][-1] = rows.clone()

    @staticmethod
    def _exact(device: str) -> AbstractContextManager[object]:
        """Return a context without autocast; entering one costs, so none where it is off."""
        on = torch.is_autocast_enabled(device)
        return torch.autocast(device, enabled=False) if on else nullcontext()

    @staticmethod
    def _all(call: Call) -> Iterator[Tensor]:
        """Yield every row, (groups, rows, width), some images at a time."""
        if call.cut is None:
            yield call.inputs.reshape(1, -1, call.inputs.shape[-1])
            return
        images = call.inputs if call.inputs.ndim == 4 else call.inputs[None]
        views = call.cut.views(images)
        each = max(_LARGEST // max(math.prod(views.shape[1:]), 1), 1)
        for part in views.split(each):
            yield rearrange(
                part, "b (g c) down across kh kw -> g (b down across) (c kh kw)",
                g=call.cut.groups,
            )  # fmt: skip

    def _some(self, call: Call, layer: Layer) -> Iterator[Tensor]:
        """Yield the rows that the images' keys choose, (groups, rows, width)."""
        if layer.axis is None or layer.taken is None:
            raise TypeError("a thinned layer knows its images")
        inputs = call.inputs.movedim(layer.axis, 0)
        images = len(self._draws[0])
        repeats = len(inputs) // images  # windows of one image follow one another
        if call.cut is None:
            flat = inputs.reshape(images, -1, inputs.shape[-1])
            image, place = self._chosen(layer.taken / layer.places, flat.shape[1])
            if len(image):
                yield flat[image.to(flat.device), place.to(flat.device)][None]
            return
        pixels, image = self._pixels(call.cut, layer.taken / layer.places, repeats, inputs)
        if len(image):
            rows = pixels.of(inputs, image).reshape(len(image), call.cut.groups, -1)
            yield rows.transpose(0, 1)

    def _pixels(
        self, cut: Cut, share: float, repeats: int, inputs: Tensor
    ) -> tuple[Pixels, Tensor]:
        """Return where the chosen patches lie, and in which image; layers of one geometry share."""
        geometry = (cut, inputs.shape[2:], inputs.device)
        key = (*geometry, share, repeats)
        if key not in self._patches:
            if geometry not in self._every:
                self._every[geometry] = cut.pixels(inputs)
            every = self._every[geometry]
            area = len(every.down)
            image, place = (t.to(inputs.device) for t in self._chosen(share, repeats * area))
            self._patches[key] = (every.at(place % area), image * repeats + place // area)
        return self._patches[key]

    def _chosen(self, share: float, places: int) -> tuple[Tensor, Tensor]:
        """Return image and position of each row to keep.

        An image gives floor(share x places + u) rows with its own uniform u, evenly spread from a
        start of its own.
        """
        known = self._rows.get((share, places))
        if known is None:
            chance, start = self._draws
            count = (share * places + chance).floor().long().clamp(max=places)
            image = torch.repeat_interleave(count)
            order = torch.arange(len(image)) - (count.cumsum(0) - count)[image]
            step = places / count[image].double()
            place = ((start[image] * places).floor() + (order * step).floor()).long() % places
            known = self._rows[share, places] = (image, place)
        return known

    def _multiply(self, name: str) -> None:
        """Add the product of the rows that wait to the upper blocks of C."""
        layer = self._moments.layers[name]
        waiting = self._kept[name]
        every = torch.cat(waiting, dim=1) if len(waiting) > 1 else waiting[0]
        if wide_type(every.device) != torch.float64:  # sums are float64, wherever that is
            every = every.cpu()
        for rows in _pieces(every):
            new = name not in self._upper
            if new:
                shape = (layer.groups, layer.width, layer.width)
                self._upper[name] = torch.empty(shape, dtype=torch.float64, device=rows.device)
            used = (rows != 0).flatten(0, 1).any(dim=0).nonzero()[:, 0]
            with _full_precision(), self._exact(rows.device.type):
                if len(used) * 2 <= layer.width:  # padding that no patch gets past
                    self._add_columns(self._upper[name], rows, used, new=new)
                else:
                    self._add_blocks(self._upper[name], rows.to(self._dtype), new=new)
        waiting.clear()
        self._waiting[name] = 0

    def _add_columns(self, total: Tensor, rows: Tensor, used: Tensor, *, new: bool) -> None:
        """Add X^T X of rows that are 0 in all other columns."""
        if new:
            total.zero_()
        few = rows[:, :, used].to(self._dtype)
        total[:, used[:, None], used] += few.transpose(1, 2) @ few

    def _add_blocks(self, total: Tensor, rows: Tensor, *, new: bool) -> None:
        """Add the blocks of X^T X on and above its diagonal."""
        width = total.shape[-1]
        for first in range(0, width, BLOCK):
            left = rows[:, :, first : first + BLOCK].transpose(1, 2)
            target = total[:, first : first + BLOCK, first:]
            if rows.dtype is torch.float64:  # beta = 0 ignores what was there
                target.baddbmm_(left, rows[:, :, first:], beta=0 if new else 1)
            elif new:
                target.copy_(left @ rows[:, :, first:])
            else:
                target += left @ rows[:, :, first:]


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    """Cut rows (groups, rows, width) so that a double copy of a piece stays small."""
    each = max(_LARGEST // max(rows.shape[0] * rows.shape[2], 1), 1)
    yield from rows.split(each, dim=1)


def _mirrored(upper: Tensor) -> Tensor:
    """Fill the lower blocks of a symmetric matrix, in place."""
    width = upper.shape[-1]
    for first in range(BLOCK, width, BLOCK):
        block = slice(first, first + BLOCK)
        upper[:, block, :first] = upper[:, :first, block].transpose(1, 2)
    return upper


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep single products from being rounded to fewer bits (TF32)."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for a backend alone, which PyTorch 2.9 has brought
        with _full_precision_by_backend():
            yield
        return
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _full_precision_by_backend() -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # torch does not declare it
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def keys_of(inputs: Inputs) -> Tensor:
    """Return an int64 key per sample, (samples,): a hash of the bits of its first tensor.

    Numbers of other widths are read as float32, so that the same pixels are the same image.
    """
    images = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    flat = images.detach().reshape(len(images), -1)
    flat = flat.float() if flat.is_floating_point() else flat
    bits = flat.contiguous().view(_WHOLE[flat.element_size()]).long()
    odd = torch.arange(bits.shape[1], device=bits.device) * 2 + 1
    weights = odd * 0x9E3779B97F4A7C1 ^ (odd << 21)  # wraps around; any fixed odd numbers do
    return ((bits + 0x51ED27) * (weights | 1)).sum(dim=1).cpu()
