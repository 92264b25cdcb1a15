"""Untrained weights for a trained model, in place (rule R8)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from forgetkit.errors import ModelError

logger = logging.getLogger("forgetkit")

FALLBACK_STD = 0.02


def reset_weights(
    model: nn.Module,
    initial: Mapping[str, Tensor] | Callable[[], nn.Module] | None = None,
) -> list[str]:
    """Replace every weight of ``model`` by an untrained one, in place.

    In this order: a state dict or a factory given by the caller; ``reset_parameters`` of every
    module, children included; the host library's own initialiser (transformers, timm); and for
    whatever none of them touched, a normal distribution with standard deviation 0.02.
    Running statistics are reset too. Randomness comes from torch's global generator.

    Args:
        model: changed in place; identity and storage of its tensors stay.
        initial: an initial state dict, or a function that builds an untrained model.

    Returns:
        Names of the tensors that got the fallback distribution.

    Raises:
        ModelError: ``initial`` does not fit the model.
    """
    if initial is not None:
        _load(model, initial() if callable(initial) else initial)
        return []
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # what no initialiser touches still is this, whatever the seed
        moved = {name: p.detach().clone() for name, p in model.named_parameters()}
        for module in model.modules():
            for verb in ("reset_parameters", "_reset_parameters", "reset_running_stats"):
                reset = getattr(module, verb, None)
                if callable(reset):
                    reset()
        _host_initialiser(model)
        tensors = dict(model.named_parameters())
        left = [name for name, p in tensors.items() if torch.equal(p, moved[name])]
        for name in left:
            tensors[name].copy_(before[name])
        untouched = [name for name in left if not _is_initial(before[name])]
        for name in untouched:
            nn.init.normal_(tensors[name], std=FALLBACK_STD)
    if untouched:
        logger.warning(
            "no initialiser is known for %s; drew from N(0, %g^2) instead; pass "
            "`.fresh(factory)` to start from the architecture's own initial weights",
            ", ".join(untouched),
            FALLBACK_STD,
        )
    return untouched


def _is_initial(tensor: Tensor) -> bool:
    """Return whether all entries are equal: initial scales and shifts are, trained ones are not.

    The value of a single number does not tell.
    """
    return tensor.numel() > 1 and bool((tensor == tensor.reshape(-1)[0]).all())


def _host_initialiser(model: nn.Module) -> None:
    """Call what transformers or timm models bring along for their own free parameters."""
    initialise = getattr(model, "_init_weights", None)
    if callable(initialise) and hasattr(model, "config"):
        for parameter in model.parameters():
            if hasattr(parameter, "_is_hf_initialized"):
                del parameter._is_hf_initialized  # noqa: SLF001
        model.apply(initialise)
        return
    whole = getattr(model, "init_weights", None)
    if callable(whole):
        whole()


def _load(model: nn.Module, initial: object) -> None:
    state = initial.state_dict() if isinstance(initial, nn.Module) else initial
    if not isinstance(state, Mapping):
        raise ModelError(
            f"fresh({type(initial).__name__}): expected a state dict or a function that returns a "
            f"module, found {type(initial).__name__}; pass the initial weights or a factory"
        )
    own = model.state_dict()
    wrong = [
        name for name, value in own.items() if name not in state or state[name].shape != value.shape
    ]
    if wrong:
        raise ModelError(
            f"fresh(...): expected a tensor of the same shape for every entry of the model's state "
            f"dict, found {len(wrong)} missing or different ({', '.join(wrong[:3])}); pass the "
            "weights of the same architecture"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
