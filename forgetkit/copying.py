"""A copy of a model that shares nothing with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import FunctionType, MethodType

from torch import Tensor, nn

from forgetkit.errors import ModelError


def independent_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy that computes with its own weights.

    A module may keep a tensor of its last forward pass as an attribute; as part of a graph it
    cannot be copied, so the copy holds its values alone.

    Args:
        model: left as it was.

    Raises:
        ModelError: a module has a ``forward`` of its own that calls the model it was made for:
            copied, it would still compute with that model's weights.
    """
    members = set(map(id, model.modules()))
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule":
            continue  # torch.compile makes the forward of its copy anew, for the module copied
        if any(id(found) in members for found in _held_by(vars(module).get("forward"))):
            where = f"module {name}" if name else "the model"
            raise ModelError(
                f"copying the model: expected forward to be a method, found that of {where} to be "
                "a function that holds on to the model, so that a copy would compute with the "
                "original's weights; define forward in a class, or bind it with types.MethodType"
            )
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def _held_by(function: object) -> Iterator[object]:
    """Yield the modules that a plain function reaches through the variables that it closes over."""
    waiting, seen = [function], set[int]()
    while waiting:
        one = waiting.pop()
        # a bound method or a partial is copied with what it is bound to; a function may hold itself
        if not isinstance(one, FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        for cell in one.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
            yield held.__self__ if isinstance(held, MethodType) else held
            waiting.append(held)
