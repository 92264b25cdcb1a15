"""Which layers to measure, with how many rows, and the measuring itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from forgetkit.engine.place import moved_inputs
from forgetkit.errors import BadHyperparameter, ModelError
from forgetkit.layer_survey import Forward, Layer, survey, thinned, with_rows
from forgetkit.moments import Accumulator, Moments
from forgetkit.types import Inputs

logger = logging.getLogger("forgetkit")

WIDEST = 4608
"""Default limit of a row: a 3 x 3 convolution of 512 channels. Time grows with its cube."""

Products: TypeAlias = Literal["double", "single"]

FLOOR: Mapping[Products, float] = {"double": 1e-12, "single": 1e-6}
"""Eigenvalues below this part of the largest are rounding."""


def plan(
    weights: Mapping[str, Tensor],
    example: Inputs,
    forward: Forward,
    *,
    positions: str | float = "auto",
    max_dim: int = WIDEST,
    products: Products = "double",
    dense_patches: bool = False,
    images: int | None = None,
) -> dict[str, Layer]:
    """Return what to measure; ``images`` is how many there will be, if that is known.

    Raises:
        ModelError: no layer can be measured.
    """
    found = survey(weights, example, forward, dense=dense_patches)
    outputs = {name: len(weights[name]) for name in found}
    return within(
        found, outputs, positions=positions, max_dim=max_dim, products=products, images=images
    )


def within(
    found: Mapping[str, Layer],
    outputs: Mapping[str, int],
    *,
    positions: str | float = "auto",
    max_dim: int = WIDEST,
    products: Products = "double",
    images: int | None = None,
) -> dict[str, Layer]:
    """Return those layers of a survey that are not too wide, with the rows that they shall give.

    Args:
        found: by ``survey``.
        outputs: output rows of each weight.
        positions: see ``Statistics.collect``.
        max_dim: the longest row.
        products: precision of the products.
        images: how many there will be, if that is known.

    Raises:
        ModelError: no layer can be measured.
    """
    layers = {name: layer for name, layer in found.items() if layer.width <= max_dim}
    if not found:
        raise ModelError(
            "statistics: expected convolutions or linear layers that multiply by parameters which "
            "may change, found none; unfreeze them with requires_grad_(True), fold weight or "
            "spectral normalisation, pruning and LoRA into them, or use another method"
        )
    if not layers:
        raise ModelError(
            f"statistics: expected convolutions or linear layers with rows up to {max_dim}, found "
            f"{len(found)} layers, all wider; raise max_dim or use another method"
        )
    wide = sorted(found.keys() - layers.keys())
    if wide:
        logger.warning(
            "statistics: %d layers have rows longer than max_dim=%d and will not be changed: %s",
            len(wide), max_dim, ", ".join(wide[:4]),
        )  # fmt: skip
    if positions == "all":
        return layers
    if isinstance(positions, str):
        return thinned(layers, outputs, double=products == "double", images=images)
    return with_rows(layers, float(positions))


def total(
    weights: Mapping[str, Tensor],
    layers: Mapping[str, Layer],
    batches: Iterable[Inputs],
    forward: Forward,
    *,
    products: Products = "double",
) -> Moments:
    """Return the moments of all batches; the model is in eval mode and gradients are off."""
    accumulator = Accumulator(weights, layers, double=products == "double")
    for inputs in batches:
        accumulator.add(inputs, forward)
    return accumulator.moments()


def plain_forward(model: nn.Module) -> Forward:
    """Return calls of a model where its weights are and in their type, without autocast."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = torch.device("cpu") if first is None else first.device
    dtype = None if first is None else first.dtype

    def call(inputs: Inputs) -> object:
        placed = moved_inputs(inputs, device, dtype)
        return model(placed) if isinstance(placed, Tensor) else model(**placed)

    return call


def check_options(positions: object, max_dim: object, products: object) -> None:
    """Refuse options that mean nothing.

    Raises:
        BadHyperparameter: a value is out of range.
    """
    number = isinstance(positions, (int, float)) and not isinstance(positions, bool)
    if positions not in ("auto", "all") and not (number and float(str(positions)) > 0):
        raise BadHyperparameter(
            f"collect(positions={positions!r}): expected 'auto', 'all' or a positive number of "
            f"rows an image, found {positions!r}; leave it out for 'auto'"
        )
    if not isinstance(max_dim, int) or isinstance(max_dim, bool) or max_dim < 1:
        raise BadHyperparameter(
            f"collect(max_dim={max_dim!r}): expected a positive integer, found {max_dim!r}; leave "
            f"it out for {WIDEST}"
        )
    if products not in ("double", "single"):
        raise BadHyperparameter(
            f"collect(products={products!r}): expected 'double' or 'single', found {products!r}; "
            "leave it out for 'double'"
        )
