"""Buffers that the passes of a run moved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forgetkit.engine.place import Place
from forgetkit.fingerprint import same_bits


@torch.no_grad()
def average_buffers(model: nn.Module, before: Mapping[str, Tensor], place: Place) -> None:
    """Let all processes have the mean of each buffer that the passes of one of them moved.

    Args:
        model: the live one.
        before: values from before the run, by name.
        place: with the processes.
    """
    buffers = {
        name: buffer
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and buffer.layout == torch.strided
    }
    if not buffers:
        return
    moved = [not same_bits(b, before[name].to(b.dtype)) for name, b in buffers.items()]
    anywhere = place.total(torch.tensor(moved, dtype=torch.float32)).tolist()
    for buffer, processes in zip(buffers.values(), anywhere, strict=True):
        if processes > 0:  # divided first: the sum of large numbers is infinite
            buffer.copy_(place.total(buffer / place.world))


def moved_unsaved(
    buffers: Mapping[str, Tensor], before: Mapping[str, Tensor], saved: set[int]
) -> dict[str, Tensor]:
    """Return the former values of buffers that changed but are in no state dict, nor in a patch.

    Args:
        buffers: live, by name.
        before: values from before the run, by name.
        saved: ``id`` of the tensors that are in the state dict.
    """
    return {
        name: before[name]
        for name, buffer in buffers.items()
        if id(buffer) not in saved
        and buffer.layout == torch.strided  # copies into sparse ones are beyond a run
        and not same_bits(buffer, before[name])
    }
