"""Running a model without leaving a trace: flags, compiler stance, random state."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer back, the very tensor with its bits, whatever a forward pass did to it.

    A model may count its calls in a buffer, or put another tensor in its place.
    """
    before = [
        (module, name, tensor, tensor._version, tensor.clone())  # noqa: SLF001  nothing else says so
        for module in model.modules()
        for name, tensor in module.named_buffers(recurse=False)
        if not (tensor.is_meta or tensor.is_inference())
    ]
    try:
        yield
    finally:
        for module, name, tensor, version, value in before:
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
            if tensor._version != version:  # noqa: SLF001
                with torch.no_grad():
                    tensor.copy_(value)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each back to what it was; buffers come back as well."""
    with buffers_kept(model), _eval_flags(model):
        yield


@contextmanager
def _eval_flags(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    try:
        # The attribute is set by hand: `eval` may be overridden to fuse weights or to freeze.
        for module, training in before:
            if training:
                module.training = False
        yield
    finally:
        for module, training in before:
            if module.training != training:
                module.training = training


@contextmanager
def eager() -> Iterator[None]:
    """Make compiled modules run as written, because hooks do not fire in compiled code."""
    # Without dynamo in memory nothing was compiled, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def same_random_state(example: list[Tensor]) -> Iterator[None]:
    """Put the random state of the CPU and of the example's CUDA devices back on leaving."""
    devices = {tensor.device for tensor in example if tensor.device.type == "cuda"}
    indices = [device.index for device in devices]
    with torch.random.fork_rng(devices=indices):
        yield
