"""The tensors that a training log keeps an eye on, and what a step changed of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forgetkit.fingerprint import plain_names


def logged_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return all parameters, and the numeric buffers, by plain name, as they are at this moment."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    buffers = {name: b for name, b in model.named_buffers() if b.dtype != torch.bool}
    short = plain_names([*parameters, *buffers])
    return (
        {short[name]: tensor for name, tensor in parameters.items()},
        {short[name]: tensor for name, tensor in buffers.items()},
    )


def trainable(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that are not frozen."""
    return {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}


def not_held(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the parameters that belong to no group of an optimiser."""
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    return {name: tensor for name, tensor in parameters.items() if id(tensor) not in held}


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def change(new: Tensor, old: Tensor) -> Tensor:
    """Return new minus old on the CPU, in at least float32 so that half types lose nothing."""
    if new.is_floating_point() and new.element_size() < 4:
        new, old = new.float(), old.float()
    return (new.detach() - old).cpu().contiguous()
