"""Calling a model with example inputs, and making other batches out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from forgetkit.dryrun.nesting import tensors
from forgetkit.errors import DataError
from forgetkit.types import Inputs

Example: TypeAlias = Inputs | tuple[Tensor, ...]
"""What `adapt` accepts: one tensor, a tuple (by position) or a mapping (by keyword)."""


def call(model: nn.Module, inputs: Example) -> object:
    """Call the model: a mapping by keyword, a tuple by position."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def batch_size(inputs: Example) -> int:
    """Return the number of samples: the leading size of the first tensor with axes.

    Raises:
        DataError: when there is no such tensor, or it is empty.
    """
    for tensor in tensors(inputs):
        if tensor.dim() and len(tensor):
            return len(tensor)
    raise DataError(
        "example_inputs should be a tensor with at least one sample, a tuple or a mapping of "
        f"tensors; found {type(inputs).__name__} without one. Pass one batch as the model gets it."
    )


def first_rows(inputs: Example, rows: int) -> Example:
    """Keep the first ``rows`` samples."""
    size = batch_size(inputs)
    return _change(inputs, lambda tensor: tensor[:rows] if _is_batched(tensor, size) else tensor)


def beside(model: nn.Module, inputs: Example) -> Example:
    """Move the tensors to where the model is, when all of it is on one device.

    Where a hook of Accelerate brings offloaded weights in, it brings the inputs along.
    """
    places = {t.device for held in (model.parameters(), model.buffers()) for t in held}
    if len(places) != 1 or any(tensor.is_meta for tensor in tensors(inputs)):
        return inputs
    (place,) = places
    if place.type == "meta" and any(hasattr(module, "_hf_hook") for module in model.modules()):
        return inputs
    return _change(inputs, lambda tensor: tensor.to(place))


def one_more(inputs: Example) -> Example:
    """Repeat the first sample at the end of the batch."""
    size = batch_size(inputs)
    return _change(
        inputs,
        lambda tensor: torch.cat([tensor, tensor[:1]]) if _is_batched(tensor, size) else tensor,
    )


def with_fresh(inputs: Example) -> Example:
    """Return two samples: the first one, and a changed copy of it.

    Only floating-point tensors with at least three axes are pictures or patches that may be
    changed freely; ids and masks are kept.
    """
    size = batch_size(inputs)

    def pair(tensor: Tensor) -> Tensor:
        if not _is_batched(tensor, size):
            return tensor
        row = tensor[:1]
        plain = tensor.dim() == 2 and isinstance(inputs, Tensor)
        if not tensor.is_floating_point() or (tensor.dim() < 3 and not plain):
            return torch.cat([row, row])
        wave = torch.arange(row.numel(), device=row.device, dtype=torch.float32).cos()
        fresh = row.flip(-1) * 0.75 + 0.2 * wave.view(row.shape).to(row.dtype)
        return torch.cat([row, fresh])

    return _change(inputs, pair)


def _is_batched(tensor: Tensor, size: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == size


def _change(inputs: Example, change: Callable[[Tensor], Tensor]) -> Example:
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {
            key: change(item) if isinstance(item, Tensor) else item for key, item in inputs.items()
        }
    return tuple(change(item) if isinstance(item, Tensor) else item for item in inputs)
