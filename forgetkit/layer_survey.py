"""Which layers' inputs can be measured, and how many rows of each image are worth their time.

Thinning: where all rows cost too much, each image gives a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from forgetkit.convolution_cuts import Cut
from forgetkit.layer_calls import Call, Watch
from forgetkit.types import Inputs

Forward: TypeAlias = Callable[[Inputs], object]
"""Calls the model on a batch as the loader gives it; the output is not used."""

SHARE_OF_FORWARD = 0.1
"""Multiplications that thinned products may cost, relative to those of the layers themselves; the
rest of the allowed 0.5 is left for cutting patches and for writing sums."""

LEAST_ROWS = 2048
"""Rows that a layer gets in all, however few the images; their cost fades with more images."""

FREE = 1 << 32
"""Multiplications that are allowed in all, whatever the forward pass costs: a twentieth of a second
or so, in which the smallest sets are measured whole."""

BLOCK = 576
"""Columns by which a symmetric product is computed, one half of them only."""

_ALIKE, _ALIKE_IN_HALF = 0.01, 0.05
"""Relative difference that one sample's rows may have in batches of two and of three: kernels
round in another order."""

_DOUBLE_COST = 2.4  # a double product against a single one, on processors


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
        padded: numbers of every row that are always padding: on a map of one pixel eight ninths of
            a 3 x 3 patch.
    """

    width: int
    groups: int
    cut: Cut | None
    places: int
    axis: int | None
    taken: float | None = None
    dense: bool = False
    padded: int = 0


def survey(
    weights: Mapping[str, Tensor], example: Inputs, forward: Forward, *, dense: bool = False
) -> dict[str, Layer]:
    """Return the layers that a forward pass uses, by the name of their weight.

    The model is called on two and on three samples: the axis that grows counts images, if the
    rows of each follow one another along it, whoever else is in the batch.

    Args:
        weights: parameters by dotted path; those of other layers are passed over.
        example: a batch of at least one sample.
        forward: calls the model.
        dense: cut patches at every place.
    """
    names = {id(weight): name for name, weight in weights.items()}
    two: list[Call] = []
    three: list[Call] = []
    for samples, found in ((2, two), (3, three)):

        def keep(call: Call, found: list[Call] = found) -> None:
            found.append(replace(call, inputs=call.inputs.clone()))  # a model may write to them

        with torch.no_grad(), Watch(names, keep):
            forward(_unlike(example, samples))
    steady = [call.name for call in two] == [call.name for call in three]
    layers: dict[str, Layer] = {}
    for call, other in zip(two, three if steady else two, strict=True):
        if steady and call.inputs.shape == other.inputs.shape:
            continue  # does not depend on the images: nothing can be summed or subtracted
        axis = _growing(call.inputs.shape, other.inputs.shape)
        if call.cut is not None and axis != 0:  # a convolution's patches are told apart by image
            axis = None
        if axis is not None and not _in_order(call.inputs, other.inputs, axis):
            axis = None
        cut = call.cut.dense() if dense and call.cut is not None else call.cut
        width = math.prod(call.weight.shape[1:])
        layer = Layer(
            width=width,
            groups=1 if cut is None else cut.groups,
            cut=cut,
            places=_count(call.inputs, cut) // 2,
            axis=axis,
            dense=dense,
            padded=0 if cut is None else width - width * cut.inside(call.inputs) // cut.area,
        )
        known = layers.get(call.name)
        if known is not None:  # one weight in several places: its rows add up
            axis = axis if axis == known.axis else None
            padded = min(layer.padded, known.padded)
            layer = replace(layer, places=layer.places + known.places, axis=axis, padded=padded)
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


def _in_order(two: Tensor, three: Tensor, axis: int) -> bool:
    """Return whether the first two samples have the same rows, one after the other, in both."""
    fewer, more = two.movedim(axis, 0), three.movedim(axis, 0)[: two.shape[axis]]
    within = _ALIKE_IN_HALF if two.dtype.itemsize < 4 else _ALIKE
    return bool((fewer - more).norm() <= within * fewer.norm())


def _unlike(example: Inputs, samples: int) -> Inputs:
    """Return a first sample, one that differs from it, and the first again."""
    if isinstance(example, Tensor):
        return torch.cat([example[:1], _other(example[:1]), example[:1]])[:samples]
    return {
        name: torch.cat([value[:1], _other(value[:1]), value[:1]])[:samples]
        for name, value in example.items()
    }


def _other(one: Tensor) -> Tensor:
    """Return other pixels; whole numbers that may be indices, and masks, stay as they are."""
    if one.dtype == torch.uint8:
        return 255 - one
    if not one.is_floating_point():
        return one
    size = one.abs().max().clamp(min=1.0)
    waves = torch.arange(one.numel(), device=one.device).sin().reshape(one.shape)
    return one + size * waves.to(one.dtype)


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
    than that: as many as cost next to nothing in all, and so that a layer has 2048 rows in all.

    Args:
        layers: from ``survey``.
        outputs: output rows of each weight.
        double: whether products are computed in double precision, which costs 2.4 times as much.
        allowed: the share.
        images: how many there are, if that is known.
    """
    own = sum(layer.places * outputs[name] * layer.width for name, layer in layers.items())
    price = {
        name: layer.groups * _product(layer) * (_DOUBLE_COST if double else 1)
        for name, layer in layers.items()
    }

    def cost(rows: float) -> float:
        return sum(
            price[name] * (min(rows, layer.places) if layer.axis is not None else layer.places)
            for name, layer in layers.items()
        )

    budget = max(allowed * own, FREE / images if images else 0.0)
    most = max((layer.places for layer in layers.values()), default=0)
    if cost(most) <= budget:
        return dict(layers)
    low, high = 0.0, float(most)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    least = LEAST_ROWS / images if images else 0.0
    return with_rows(layers, max(low, least))


def with_rows(layers: Mapping[str, Layer], rows: float) -> dict[str, Layer]:
    """Return the layers with ``rows`` rows an image on average, where they have more."""
    return {
        name: replace(layer, taken=rows)
        if layer.axis is not None and rows < layer.places
        else layer
        for name, layer in layers.items()
    }


def _product(layer: Layer) -> float:
    """Return the multiplications that one row of one group costs."""
    used = layer.width - layer.padded
    if used * 2 <= layer.width:  # a product of these columns alone
        return used**2
    blocks = math.ceil(layer.width / BLOCK)  # of a symmetric product half is computed
    return layer.width**2 * (blocks + 1) / (2 * blocks)
