"""Telling the calls of one function apart by the weights that they read.

How many calls of ``linear`` came before says which one it is only while every forward takes the
same steps. The weight that it multiplies with says so in train mode too.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from forgetkit.dryrun.graph import WeightUse
from forgetkit.dryrun.nesting import tensors


@dataclass(frozen=True)
class WeightCall:
    """One call of a function.

    Args:
        weights: paths of the weights behind its operands, read directly or as something that is
            computed from weights alone, such as ``W.t()``.
        ordinal: how many calls of the function with the same weights came before.
        of_weights_alone: whether every tensor that it reads is such a one.
    """

    weights: frozenset[str]
    ordinal: int
    of_weights_alone: bool


class WeightCalls:
    """Name the calls of functions in one forward pass.

    Args:
        weights: the model's weights by identity, as `weight_places` finds them.
    """

    def __init__(self, weights: Mapping[int, WeightUse]) -> None:
        self._weights = weights
        self._counts: Counter[tuple[object, frozenset[str]]] = Counter()
        self._derived: dict[int, tuple[weakref.ref[Tensor], frozenset[str]]] = {}

    def begin(
        self, function: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> WeightCall:
        """Name the call that is about to be made."""
        behind = [self._behind(operand) for operand in tensors((args, kwargs))]
        weights = frozenset[str]().union(*behind)
        ordinal = self._counts[function, weights]
        self._counts[function, weights] += 1
        return WeightCall(weights, ordinal, bool(behind) and all(behind))

    def end(self, call: WeightCall, result: object) -> None:
        """Note what the call made, to know it where it is read."""
        if call.of_weights_alone:
            for made in tensors(result):
                self._derived[id(made)] = (weakref.ref(made), call.weights)

    def _behind(self, tensor: Tensor) -> frozenset[str]:
        place = self._weights.get(id(tensor))
        if place is not None and getattr(place.owner, place.attribute, None) is tensor:
            return frozenset({place.path})
        entry = self._derived.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else frozenset()


def weight_places(model: nn.Module) -> dict[int, WeightUse]:
    """Find parameters, buffers and plain tensor attributes of all modules, by identity."""
    places: dict[int, WeightUse] = {}
    for path, module in model.named_modules():
        held: list[tuple[str, object]] = [
            *module._parameters.items(),  # noqa: SLF001 - without descending into children
            *module._buffers.items(),  # noqa: SLF001
            *vars(module).items(),
        ]
        for name, tensor in held:
            if isinstance(tensor, Tensor):
                full = f"{path}.{name}" if path else name
                places.setdefault(id(tensor), WeightUse(module, name, full))
    return places
