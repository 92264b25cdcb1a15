"""A photograph of a model, to show that a run left no trace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


@dataclass(frozen=True)
class Photograph:
    """Everything about a model but the values of its weights.

    Args:
        attributes: names of the attributes of every module.
        hooks: number of hooks of every kind and module.
        training: the mode of every module.
        classes: the type of every module.
        tensors: identity, address, type, device and ``requires_grad`` of every tensor.
        grads: identity of every gradient.
        random: the state of torch's generator.
        grad_enabled: autograd's mode.
    """

    attributes: tuple[tuple[str, ...], ...]
    hooks: tuple[int, ...]
    training: tuple[bool, ...]
    classes: tuple[type, ...]
    tensors: tuple[tuple[object, ...], ...]
    grads: tuple[int | None, ...]
    random: bytes
    grad_enabled: bool


def photograph(model: nn.Module) -> Photograph:
    """Record everything about a model that a run must give back."""
    modules = list(model.modules())
    tensors = [*model.parameters(), *model.buffers()]
    return Photograph(
        attributes=tuple(tuple(sorted(vars(module))) for module in modules),
        hooks=tuple(len(getattr(module, name)) for module in modules for name in _HOOKS),
        training=tuple(module.training for module in modules),
        classes=tuple(type(module) for module in modules),
        tensors=tuple(
            (id(t), t.data_ptr(), t.dtype, t.device, t.requires_grad, t.shape) for t in tensors
        ),
        grads=tuple(None if p.grad is None else id(p.grad) for p in model.parameters()),
        random=torch.get_rng_state().numpy().tobytes(),
        grad_enabled=torch.is_grad_enabled(),
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors of the state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors whose bits differ."""
    return [name for name in before if not _same_bits(before[name], after[name])]


def _same_bits(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return bool(
        torch.equal(
            left.contiguous().reshape(-1).view(torch.uint8),
            right.contiguous().reshape(-1).view(torch.uint8),
        )
    )
