"""Putting the tensors of a checkpoint into a freshly built model, all of them or an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from forgetkit.checkpoint import read_state_dict
from forgetkit.errors import ModelError
from forgetkit.fingerprint import plain_names, same_bits, same_tensor_groups

_SHOWN = 3


def load_weights(model: nn.Module, path: str | Path, *, as_stored: bool = False) -> None:
    """Fill every tensor of a model from a checkpoint file or folder.

    Names may carry the marks of compile and data-parallel wrappers; of tied tensors one name is
    enough, as safetensors stores them.

    Args:
        model: changed in place.
        path: ``.safetensors``, a torch state dict, or a folder that holds one.
        as_stored: give every tensor the dtype that it has in the file, instead of rounding what
            is in the file to the model's.

    Raises:
        ModelError: the file cannot be read safely, or its tensors are not those of the model.
    """
    stored = read_state_dict(path)
    held = {short: stored[name] for name, short in plain_names(stored).items()}
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    short_names = plain_names(own)
    chosen: dict[str, Tensor] = {}
    untied: list[str] = []
    for group in same_tensor_groups(own):
        given = [short_names[name] for name in group if short_names[name] in held]
        chosen.update({name: held[given[0]] for name in group if given})
        if any(not same_bits(held[given[0]], held[name]) for name in given[1:]):
            untied.append(f"different values of {given}, one tensor in the model")
    problems = _problems(own, chosen, {short_names[n] for n in own}, held) + untied
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelError(
            f"state_dict {path} is expected to hold exactly the tensors of "
            f"{type(model).__name__}; found {shown}{more}. Name the architecture that it was saved "
            "from; if only the shape of the last layer differs, pass num_classes."
        )
    if as_stored:
        cast(model, {name: tensor.dtype for name, tensor in chosen.items()})
    model.load_state_dict(chosen, strict=False)  # completeness was checked above


def cast(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give the tensors of a model their dtypes, in place.

    Args:
        model: its parameters keep identity, and tied ones stay tied.
        dtypes: by name. Buffers that are not part of the state go along with the tensors that had
            their dtype, where these all change to one other, as when a model is cast.
    """
    wanted = {
        id(tensor): dtypes[name]
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name in dtypes
    }
    tensors = [*model.parameters(), *model.buffers()]
    became: dict[torch.dtype, set[torch.dtype]] = {}
    for tensor in tensors:
        if id(tensor) in wanted and tensor.is_floating_point():
            became.setdefault(tensor.dtype, set()).add(wanted[id(tensor)])
    for tensor in tensors:
        dtype = wanted.get(id(tensor), tensor.dtype)
        if id(tensor) not in wanted and len(became.get(tensor.dtype, ())) == 1:
            (dtype,) = became[tensor.dtype]  # a buffer that no file holds
        tensor.data = tensor.data.to(dtype)


def _problems(
    own: Mapping[str, Tensor],
    chosen: Mapping[str, Tensor],
    known: set[str],
    held: Mapping[str, Tensor],
) -> list[str]:
    absent = [f"no {name!r}" for name in own if name not in chosen]
    shapes = [
        f"{name!r} of shape {tuple(t.shape)} instead of {tuple(own[name].shape)}"
        for name, t in chosen.items()
        if t.shape != own[name].shape
    ]
    extra = [f"an unknown {name!r}" for name in held if name not in known]
    return shapes + absent + extra
