"""Whether two models compute alike once they hold the same weights, told without running them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_NOT_COMPUTED_WITH = frozenset(
    {
        "training", "grad_checkpointing", "memory_efficient", "inplace", "momentum", "fused_attn",
        "num_classes",
    }
)  # fmt: skip
"""Names of attributes that change no logits; the head's own shape says how many classes it has."""


def same_network(model: nn.Module, twin: nn.Module) -> bool:
    """Return whether a model is what its architecture builds, with nothing exchanged or reset.

    Compared are tensors by name and shape, the class of every module, and what its attributes say:
    strides, paddings, epsilons. What acts in training only (dropout of every kind) may differ, and
    so may what the model has beside the twin's attributes, but for a method that it overrides.

    Args:
        model: the one that was trained.
        twin: the same architecture, newly built, on any device.
    """
    parts, others = _acting(model), _acting(twin)
    if parts.keys() != others.keys() or _shapes(model) != _shapes(twin):
        return False
    return all(_same_module(part, others[name]) for name, part in parts.items())


def _acting(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that do something in evaluation: a rate of 0 may leave dropout out."""
    return {name: part for name, part in model.named_modules() if _kind(part) is not nn.Identity}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in named}


def _same_module(part: nn.Module, other: nn.Module) -> bool:
    kind = _kind(part)
    if kind is not _kind(other):
        return False
    if any(callable(getattr(type(part), name, None)) for name in vars(part).keys() - vars(other)):
        return False  # an attribute of its own stands before a method, ``forward`` for one
    told = (name for name in vars(other) if name[0] != "_" and "drop" not in name)
    return all(
        _plain(vars(part).get(name)) == _plain(vars(other)[name])
        for name in told
        if name not in _NOT_COMPUTED_WITH
    )


def _plain(value: object) -> object:
    """Return what can be compared between two builds, ``None`` for anything else."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", None)  # functions and classes


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module as far as evaluation in one process goes."""
    if "Drop" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
        return nn.Identity
    return _BatchNorm if _is_batch_norm(module) else type(module)


def _is_batch_norm(module: nn.Module) -> bool:
    # conversions to synchronised ones change the class of all of them, fused with an activation too
    known = type(module).__module__ == _BatchNorm.__module__
    fused = type(module).__name__ in ("BatchNormAct2d", "SyncBatchNormAct")
    return isinstance(module, _BatchNorm) and (known or fused)
