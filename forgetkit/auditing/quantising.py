"""Rounding, casting and pruning of weights, on copies. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forgetkit.copying import independent_copy

SETTINGS = ("int8", "int4", "int3", "bfloat16", "float16", "pruned 30 %")


def quantised(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """Return a weight rounded to nearest, symmetric, with one scale for each output channel.

    s = max |w| / (2^(b-1) - 1), w_hat = s clip(round(w / s), -2^(b-1), 2^(b-1) - 1).

    Args:
        weight: (..., channels, ...).
        bits: b, at least 2.
        axis: that counts the output channels.
    """
    held = [other for other in range(weight.ndim) if other != axis]
    top = 2 ** (bits - 1)
    scale = weight.abs().amax(dim=held, keepdim=True) / (top - 1)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded: Tensor = scale * torch.clamp(torch.round(weight / safe), -top, top - 1)
    return rounded


def weights_of(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Return the weights of convolutions, linear layers and attention, and their output axis."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *transposed)
    found: dict[int, tuple[nn.Parameter, int]] = {}
    for module in model.modules():
        if isinstance(module, kinds):
            own, axis = module._parameters.get("weight"), 1 if isinstance(module, transposed) else 0  # noqa: SLF001
        elif isinstance(module, nn.MultiheadAttention):
            own, axis = module._parameters.get("in_proj_weight"), 0  # noqa: SLF001
        else:
            continue
        if own is not None:
            found[id(own)] = (own, axis)
    return list(found.values())


@torch.no_grad()
def compressed(model: nn.Module, setting: str) -> nn.Module:
    """Return a copy whose weights went through one of ``SETTINGS``; it computes as before.

    Args:
        model: not changed.
        setting: ``"int<bits>"``, the name of a floating type (all tensors are cast there and
            back), or ``"pruned <percent> %"`` (the smallest weights by magnitude become 0).
    """
    twin = independent_copy(model)
    if setting.startswith("int"):
        for weight, axis in weights_of(twin):
            weight.copy_(quantised(weight, int(setting.removeprefix("int")), axis))
    elif setting.startswith("pruned"):
        share = float(setting.split()[1]) / 100
        weights = [weight for weight, _ in weights_of(twin)]
        sizes = torch.cat([weight.abs().flatten().float() for weight in weights])
        if int(share * len(sizes)) > 0:
            bound = sizes.kthvalue(int(share * len(sizes))).values
            for weight in weights:
                weight.masked_fill_(weight.abs() <= bound, 0.0)
    else:
        dtype = getattr(torch, setting)
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype).to(tensor.dtype))
    return twin
