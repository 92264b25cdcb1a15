"""Train and eval mode of the passes, module by module (rule R1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from forgetkit.dryrun.quiet import buffers_kept


def has_running_statistics(module: nn.Module) -> bool:
    """Return whether a module normalises with statistics that training passes would move."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def set_update_mode(
    model: nn.Module, *, bn: str, dropout: bool, partly: bool = False, front: bool = True
) -> None:
    """Set the mode of update passes: everything in eval but what is asked to train.

    Args:
        model: changed in place; the caller restores the flags.
        bn: ``"frozen"`` keeps normalisation with running statistics in eval, ``"train"`` not.
        dropout: whether the rest (dropout, stochastic depth) is in train mode.
        partly: whether only a part of the network trains: then normalisation that is frozen stays
            in eval whatever ``bn`` says; without parameters it is as frozen as what lies before it.
        front: whether dropout acts before the first layer that trains, too.
    """
    trains, behind = not partly, front or not partly
    for module in model.modules():
        if partly:
            own = [p.requires_grad for p in module.parameters(recurse=False)]
            trains = any(own) if own else trains
            behind = behind or trains
        if has_running_statistics(module):
            module.training = bn == "train" and trains
        else:
            module.training = dropout and (
                behind or any(p.requires_grad for p in module.parameters())
            )


def frozen_tensors(model: nn.Module) -> list[str]:
    """Return the names of frozen parameters, and of the buffers of modules that have no others."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for path, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            buffers = module.named_buffers(path, recurse=False)
            names += [name for name, _ in buffers]
    return sorted(names)


def set_eval(model: nn.Module) -> nn.Module:
    """Put every module into eval mode and return the model.

    The flag is set by hand: ``eval`` and ``train`` may be overridden, to merge an adapter into
    frozen weights for one, and a flag alone would not take that off again.
    """
    for module in model.modules():
        if module.training:
            module.training = False
    return model


@contextmanager
def evaluating(model: nn.Module, *, editing: bool = False) -> Iterator[None]:
    """Put every module into eval mode for the block, then restore each one's own flag.

    Args:
        model: to measure.
        editing: whether the block may change buffers; else they come back as they were, too.
    """
    before = [(module, module.training) for module in model.modules()]
    with nullcontext() if editing else buffers_kept(model):
        try:
            set_eval(model)
            yield
        finally:
            for module, flag in before:
                if module.training != flag:
                    module.training = flag
