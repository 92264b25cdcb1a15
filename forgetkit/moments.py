"""Second moments of what linear layers and convolutions multiply with their weights.

For a weight W with rows of length d let X (rows, d) hold the layer's inputs: tokens of a linear
layer, patches of a convolution, over all samples and output positions. Only C = X^T X (d, d) is
kept, summed while batches pass through, so memory is O(d^2) a layer whatever the number of images.
Moments of disjoint sets add up; those of a part of the set can be subtracted.

Calls are watched where they happen, ``functional.linear`` and ``functional.conv2d`` on a parameter,
so padding modes, subclasses and functional use need no cases of their own. A derived weight (weight
norm, standardised weights) is not the parameter and is left out.

Thinning: where all rows cost too much, each image gives a few of them. Which ones is a function of
the image's bits, so the same image gives the same rows in any set, batch and
process, and subtraction stays exact.

Source: Hoang et al., "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference
    with Gradient Projection", WACV 2024, arXiv:2312.04095, section 3.

Differences: rows follow the layer's own stride and dilation, so that they span its gradients (the
    authors' code cuts at every place: ``dense``); sums are float64; thinning is new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from forgetkit import draws
from forgetkit.convolution_cuts import Cut, Pixels, cut_of
from forgetkit.errors import DataError
from forgetkit.types import Inputs

Forward = Callable[[Inputs], object]
"""Calls the model on a batch as the loader gives it; the output is not used."""

SHARE_OF_FORWARD = 0.25
"""Multiplications that thinned products may cost, relative to those of the layers themselves; the
rest of the allowed 0.5 is left for cutting patches and for writing sums."""

LEAST_ROWS = 1024
"""Rows that a layer gets in all, however few the images; their cost fades with more images."""

_BUFFERED = 1024  # rows that are gathered before a product: few large ones are quicker
_BLOCK = 1152  # a symmetric product is computed by blocks of columns, one half of them only
_LARGEST = 1 << 24  # elements of rows that are held at once
_DOUBLE_COST = 2.0  # a double product against a single one, on processors


@dataclass(frozen=True)
class Layer:
    """One weight whose inputs are measured.

    Args:
        width: d, length of a row: inputs of one group times the kernel's area.
        groups: blocks of output rows with inputs of their own.
        cut: how patches are cut, ``None`` for a linear layer.
        places: rows that one image gives in one forward pass.
        axis: axis of the layer's input that counts images; ``None`` where none could be found.
        taken: rows an image that are kept on average; ``None`` keeps all.
        dense: whether patches are cut at every place, whatever the convolution's stride and
            dilation.
    """

    width: int
    groups: int
    cut: Cut | None
    places: int
    axis: int | None
    taken: float | None = None
    dense: bool = False


@dataclass(frozen=True)
class _Call:
    """One product of an input with a watched weight."""

    name: str
    weight: Tensor
    inputs: Tensor
    cut: Cut | None


class _Watch(TorchFunctionMode):
    """Reports every linear map and convolution whose weight is one of the parameters."""

    def __init__(self, names: Mapping[int, str], report: Callable[[_Call], None]) -> None:
        super().__init__()
        self._names = names
        self._report = report

    def __torch_function__(
        self,
        func: object,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if not callable(func):
            raise TypeError("torch calls functions only")
        named = dict(kwargs or {})
        if func is functional.multi_head_attention_forward:
            return self._attention(func, args, named)
        if func is functional.linear or func is torch.conv2d:
            weight = args[1] if len(args) > 1 else named.get("weight")
            inputs = args[0] if args else named.get("input")
            name = self._names.get(id(weight))
            if name is not None and isinstance(weight, Tensor) and isinstance(inputs, Tensor):
                cut = None if func is functional.linear else cut_of(weight, args, named)
                self._report(_Call(name, weight, inputs.detach(), cut))
        return func(*args, **named)

    def _attention(
        self, func: Callable[..., object], args: tuple[object, ...], named: dict[str, object]
    ) -> object:
        """Report both projections of ``nn.MultiheadAttention``, whose weights it never calls.

        With the identity as output projection the function returns what its own projection
        multiplies; that projection is then done here, where it is seen.
        """
        keys = ("query", "key", "value", "embed_dim", "heads", "in_weight", "in_bias", "bias_k",
                "bias_v", "add_zero", "dropout_p", "out_weight", "out_bias")  # fmt: skip
        if len(args) < len(keys):  # called in a way of its own: left alone
            return func(*args, **named)
        given = dict(zip(keys, args, strict=False))
        shared = {"in_weight": given["in_weight"]}
        own = {f"{part}_proj_weight": named.get(f"{part}_proj_weight") for part in "qkv"}
        for key, weight in (shared | own).items():
            name = self._names.get(id(weight))
            if name is None or not isinstance(weight, Tensor):
                continue
            parts = ("query", "key", "value")
            wanted = parts if key == "in_weight" else [p for p in parts if p[0] == key[0]]
            seen: set[int] = set()
            for part in wanted:  # rows of W act on one of the three: all of them are protected
                inputs = given[part]
                if isinstance(inputs, Tensor) and id(inputs) not in seen:
                    seen.add(id(inputs))
                    self._report(_Call(name, weight, inputs.detach(), None))
        out_weight, out_bias = given["out_weight"], given["out_bias"]
        name = self._names.get(id(out_weight))
        if name is None or not isinstance(out_weight, Tensor):
            return func(*args, **named)
        unit = torch.eye(out_weight.shape[1], dtype=out_weight.dtype, device=out_weight.device)
        found = func(*args[:11], unit, None, *args[13:], **named)
        if not isinstance(found, tuple) or not isinstance(found[0], Tensor):
            raise TypeError("attention returns its output and its weights")
        self._report(_Call(name, out_weight, found[0].detach(), None))
        bias = out_bias if isinstance(out_bias, Tensor) else None
        return (functional.linear(found[0], out_weight, bias), *found[1:])


def survey(
    weights: Mapping[str, Tensor], example: Inputs, forward: Forward, *, dense: bool = False
) -> dict[str, Layer]:
    """Return the layers that a forward pass uses, by the name of their weight.

    The model is called on two and on three copies of one sample: the axis that grows counts images.

    Args:
        weights: parameters by dotted path; those of other layers are passed over.
        example: a batch of at least one sample.
        forward: calls the model.
        dense: cut patches at every place.
    """
    names = {id(weight): name for name, weight in weights.items()}
    two: list[_Call] = []
    three: list[_Call] = []
    for copies, found in ((2, two), (3, three)):
        with torch.no_grad(), _Watch(names, found.append):
            forward(_repeated(example, copies))
    steady = [call.name for call in two] == [call.name for call in three]
    layers: dict[str, Layer] = {}
    for call, other in zip(two, three if steady else two, strict=True):
        if steady and call.inputs.shape == other.inputs.shape:
            continue  # does not depend on the images: nothing can be summed or subtracted
        axis = _growing(call.inputs.shape, other.inputs.shape)
        cut = call.cut.dense() if dense and call.cut is not None else call.cut
        layer = Layer(
            width=math.prod(call.weight.shape[1:]),
            groups=1 if cut is None else cut.groups,
            cut=cut,
            places=_count(call.inputs, cut) // 2,
            axis=axis,
            dense=dense,
        )
        known = layers.get(call.name)
        if known is not None:  # one weight in several places: its rows add up
            axis = axis if axis == known.axis else None
            layer = replace(layer, places=layer.places + known.places, axis=axis)
        layers[call.name] = layer
    return layers


def _growing(two: torch.Size, three: torch.Size) -> int | None:
    grown = [axis for axis, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if len(grown) != 1 or three[grown[0]] * 2 != two[grown[0]] * 3:
        return None
    return grown[0]


def _count(inputs: Tensor, cut: Cut | None) -> int:
    if cut is None:
        return inputs.numel() // max(inputs.shape[-1], 1)
    return (inputs.shape[0] if inputs.ndim == 4 else 1) * math.prod(cut.places(inputs))


def _repeated(example: Inputs, copies: int) -> Inputs:
    if isinstance(example, Tensor):
        return example[:1].expand(copies, *example.shape[1:]).contiguous()
    return {
        name: value[:1].expand(copies, *value.shape[1:]).contiguous()
        for name, value in example.items()
    }


def thinned(
    layers: Mapping[str, Layer],
    outputs: Mapping[str, int],
    *,
    double: bool,
    allowed: float = SHARE_OF_FORWARD,
    images: int | None = None,
) -> dict[str, Layer]:
    """Return the layers with the rows an image that keep the products within a budget.

    The budget is a share of the layers' own multiplications, sum over layers of places x outputs x
    width. Every layer keeps the same number r of rows an image, or all it has; r is the largest
    that fits. Layers whose images cannot be told apart keep all. From few images more are taken
    than that, so that a layer has twice as many rows as they are long, or 1024, in all.

    Args:
        layers: from ``survey``.
        outputs: output rows of each weight.
        double: whether products are computed in double precision, which costs twice.
        allowed: the share.
        images: how many there are, if that is known.
    """
    own = sum(layer.places * outputs[name] * layer.width for name, layer in layers.items())
    price = {
        name: layer.groups * layer.width**2 * _saving(layer.width) * (_DOUBLE_COST if double else 1)
        for name, layer in layers.items()
    }

    def cost(rows: float) -> float:
        return sum(
            price[name] * (min(rows, layer.places) if layer.axis is not None else layer.places)
            for name, layer in layers.items()
        )

    most = max((layer.places for layer in layers.values()), default=0)
    if cost(most) <= allowed * own:
        return dict(layers)
    low, high = 0.0, float(most)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= allowed * own else (low, middle)
    least = {name: min(2 * layer.width, LEAST_ROWS) for name, layer in layers.items()}
    return {
        name: _with_rows(layer, max(low, least[name] / images if images else 0.0))
        for name, layer in layers.items()
    }


def with_rows(layers: Mapping[str, Layer], rows: float) -> dict[str, Layer]:
    """Return the layers with ``rows`` rows an image on average, where they have more."""
    return {name: _with_rows(layer, rows) for name, layer in layers.items()}


def _with_rows(layer: Layer, rows: float) -> Layer:
    thin = layer.axis is not None and rows < layer.places
    return replace(layer, taken=rows) if thin else layer


def _saving(width: int) -> float:
    """Return the part of a symmetric product's blocks that are computed."""
    blocks = math.ceil(width / _BLOCK)
    return (blocks + 1) / (2 * blocks)


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
        self._patches: dict[tuple[object, ...], Pixels] = {}
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
        with _Watch(self._names, self._see):
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

    def _see(self, call: _Call) -> None:
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
    def _all(call: _Call) -> Iterator[Tensor]:
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

    def _some(self, call: _Call, layer: Layer) -> Iterator[Tensor]:
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
        pixels = self._pixels(call.cut, layer.taken / layer.places, repeats, inputs)
        if len(pixels.image):
            rows = pixels.of(inputs).reshape(len(pixels.image), call.cut.groups, -1)
            yield rows.transpose(0, 1)

    def _pixels(self, cut: Cut, share: float, repeats: int, inputs: Tensor) -> Pixels:
        """Return where the chosen patches lie; layers of one geometry share them."""
        key = (cut, share, repeats, inputs.shape[2:], inputs.device)
        if key not in self._patches:
            area = math.prod(cut.places(inputs))
            image, place = self._chosen(share, repeats * area)
            image = (image * repeats + place // area).to(inputs.device)
            self._patches[key] = cut.pixels(inputs, image, (place % area).to(inputs.device))
        return self._patches[key]

    def _chosen(self, share: float, places: int) -> tuple[Tensor, Tensor]:
        """Return image and position of each row to keep.

        An image gives floor(share x places + u) rows with its own uniform u, evenly spread from a
        start of its own.
        """
        known = self._rows.get((share, places))
        if known is not None:
            return known
        chance, start = self._draws
        count = (share * places + chance).floor().long().clamp(max=places)
        image = torch.repeat_interleave(torch.arange(len(count)), count)
        order = torch.arange(len(image)) - (count.cumsum(0) - count)[image]
        step = places / count[image].double()
        place = ((start[image] * places).floor() + (order * step).floor()).long() % places
        self._rows[share, places] = (image, place)
        return image, place

    def _multiply(self, name: str) -> None:
        """Add the product of the rows that wait to the upper blocks of C."""
        layer = self._moments.layers[name]
        waiting = self._kept[name]
        for each in _pieces(torch.cat(waiting, dim=1) if len(waiting) > 1 else waiting[0]):
            rows = each.to(self._dtype)
            new = name not in self._upper
            if new:
                shape = (layer.groups, layer.width, layer.width)
                self._upper[name] = torch.empty(shape, dtype=torch.float64, device=rows.device)
            with _full_precision():
                for first in range(0, layer.width, _BLOCK):
                    left = rows[:, :, first : first + _BLOCK].transpose(1, 2)
                    target = self._upper[name][:, first : first + _BLOCK, first:]
                    if self._dtype is torch.float64:  # beta = 0 ignores what was there
                        target.baddbmm_(left, rows[:, :, first:], beta=0 if new else 1)
                    elif new:
                        target.copy_(left @ rows[:, :, first:])
                    else:
                        target += left @ rows[:, :, first:]
        waiting.clear()
        self._waiting[name] = 0


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    """Cut rows (groups, rows, width) so that a double copy of a piece stays small."""
    each = max(_LARGEST // max(rows.shape[0] * rows.shape[2], 1), 1)
    yield from rows.split(each, dim=1)


def _mirrored(upper: Tensor) -> Tensor:
    """Fill the lower blocks of a symmetric matrix, in place."""
    width = upper.shape[-1]
    for first in range(_BLOCK, width, _BLOCK):
        block = slice(first, first + _BLOCK)
        upper[:, block, :first] = upper[:, :first, block].transpose(1, 2)
    return upper


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep single products from being rounded to fewer bits (TF32)."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
