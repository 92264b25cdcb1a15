"""What surrounds a call in the caller's program, and must not change what forgetkit computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from forgetkit.dryrun.quiet import eager


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Leave the caller's autocast, inference mode, gradient mode and default device outside.

    Compiled modules run as written in the block.
    """
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        _without_autocast(),
        _without_default_device(),
        eager(),
    ):
        yield


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Leave the caller's mixed precision outside of the block: a run has its own.

    Weights that autocast has converted are kept until its outermost block ends, so a block inside
    another would go on with those of an earlier step: the nesting is taken off, too.
    """
    kinds = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    level = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    try:
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)
        for _ in range(level):
            torch.autocast_decrement_nesting()
        yield
    finally:
        for _ in range(level):
            torch.autocast_increment_nesting()
        for kind in kinds:
            torch.set_autocast_enabled(kind, True)
        torch.clear_autocast_cache()


def _without_default_device() -> AbstractContextManager[object]:
    """Let tensors be made on the CPU in the block, wherever the caller's are: a run moves its own.

    Where it is the CPU already nothing is done, as the mode costs time in every call of torch.
    """
    if torch.get_default_device().type == "cpu":
        return nullcontext()
    return torch.device("cpu")
