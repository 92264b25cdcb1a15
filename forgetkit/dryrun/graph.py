"""The record of one forward pass: values, the calls that made them, and no activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Use:
    """A recorded value that stands where a tensor stood in a call."""

    value: int


@dataclass(frozen=True)
class WeightUse:
    """A parameter, buffer or tensor attribute, stored by place so that replay reads the live one.

    Args:
        owner: the module that holds it.
        attribute: its name there.
        path: dotted path in the model.
    """

    owner: nn.Module
    attribute: str
    path: str

    def read(self) -> Tensor:
        """Return the tensor as it is now."""
        live = getattr(self.owner, self.attribute)
        if not isinstance(live, Tensor):
            raise TypeError(f"{self.path} is no tensor any more but {type(live).__name__}")
        return live


@dataclass(frozen=True)
class Constant:
    """A small tensor that the model holds outside of its modules."""

    tensor: Tensor


@dataclass(frozen=True)
class BatchMultiple:
    """An integer that was ``factor`` times the batch size."""

    factor: int


@dataclass
class Value:
    """One tensor of the recorded forward.

    Args:
        origin: ``call`` (made by ``node``), ``input``, ``unknown`` (not seen being made),
            ``stale`` (changed behind our back through a view).
        shape: its shape.
        dtype: its type.
        data: whether it depends on the model's input.
        node: number of the call that made it, or -1.
        constant: the tensor itself, kept for small unknown ones.
    """

    origin: Literal["call", "input", "unknown", "stale"]
    shape: tuple[int, ...]
    dtype: torch.dtype
    data: bool
    node: int = -1
    constant: Tensor | None = None


@dataclass(frozen=True)
class Autocast:
    """The autocast state of one device type."""

    device: str
    enabled: bool
    dtype: torch.dtype


@dataclass
class Node:
    """One call: of a leaf module, or of a function outside of leaf modules.

    Args:
        module: the called module, or ``None`` for a function.
        name: dotted path of the module, or the function's name.
        function: the called function, or ``None``.
        ordinal: how many calls of the same module, or of the same function with the same weights,
            came before.
        args: positional arguments with `Use`, `WeightUse` and `Constant` for tensors.
        kwargs: keyword arguments, likewise.
        weights: of a function, paths of the weights behind its operands.
        outputs: (path in the result, value) of every tensor in the result.
        mutated: (old value, new value) of every operand that was changed in place.
        autocast: the state to enter for replay, where it was not the caller's.
        owned: whether a module's own weights take part.
    """

    module: nn.Module | None
    name: str
    function: Callable[..., object] | None
    ordinal: int
    args: tuple[object, ...]
    kwargs: dict[str, object]
    weights: frozenset[str] = frozenset()
    outputs: list[tuple[tuple[str | int, ...], int]] = field(default_factory=list)
    mutated: list[tuple[int, int]] = field(default_factory=list)
    autocast: tuple[Autocast, ...] = ()

    def operands(self) -> Iterator[tuple[tuple[str | int, ...], object]]:
        """Yield (path, leaf) of all arguments; paths start with 0 (args) or 1 (kwargs)."""
        yield from _leaves((self.args, self.kwargs), ())

    def uses(self) -> list[tuple[tuple[str | int, ...], int]]:
        """Return (path, value) of the recorded values among the arguments."""
        return [(path, leaf.value) for path, leaf in self.operands() if isinstance(leaf, Use)]

    def label(self) -> str:
        """Return a name for people."""
        return self.name if self.module is None else f"{self.name} ({type(self.module).__name__})"


@dataclass
class Graph:
    """All calls of one forward, in order, and the values between them."""

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def makers(self, value: int) -> Node | None:
        """Return the call that made ``value``, if any."""
        number = self.values[value].node
        return None if number < 0 else self.nodes[number]


def _leaves(
    tree: object, prefix: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], object]]:
    if isinstance(tree, tuple | list):
        for position, item in enumerate(tree):
            yield from _leaves(item, (*prefix, position))
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _leaves(item, (*prefix, key))
    elif isinstance(tree, slice):
        yield from _leaves((tree.start, tree.stop, tree.step), prefix)
    else:
        yield prefix, tree
