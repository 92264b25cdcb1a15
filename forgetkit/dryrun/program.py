"""Replaying the calls between features and logits with the model's live weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forgetkit.dryrun.graph import BatchMultiple, Node, Use, WeightUse
from forgetkit.dryrun.nesting import follow, map_leaves
from forgetkit.dryrun.slicing import Slice

Weights: TypeAlias = Callable[[Tensor], Tensor]
"""Replaces a weight by another tensor of its shape during a replay."""


@dataclass
class Program:
    """A slice that can be run again.

    Args:
        slice: the recorded calls.
        device: device of the features when recorded.
    """

    slice: Slice
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the features when recorded, which the logits need not share."""
        return reduce(torch.promote_types, sorted(self._dtypes, key=str))

    @property
    def _dtypes(self) -> set[torch.dtype]:
        return {self.slice.graph.values[cut].dtype for cut in self.slice.cuts}

    def run(
        self,
        cuts: list[Tensor],
        weights: Mapping[int, Tensor] | None = None,
        watch: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Compute the logits.

        Args:
            cuts: the features, one tensor a cut, all with the same leading size.
            weights: tensors that stand in for parameters, by ``id`` of the parameter.
            watch: filled with the first output of every affine call, by its number.

        Returns:
            (batch, classes) logits.
        """
        replace = self._replacement(cuts[0], weights or {})
        values: dict[int, Tensor] = dict(zip(self.slice.cuts, cuts, strict=True))
        for number in self.slice.nodes:
            node = self.slice.graph.nodes[number]
            self._call(node, values, cuts[0], replace)
            if watch is not None and number in self.slice.affines:
                watch[number] = values[node.outputs[0][1]]
        return values[self.slice.target]

    def precisions(self) -> set[torch.dtype]:
        """Return the floating types that a replay computes in."""
        nodes = [self.slice.graph.nodes[number] for number in self.slice.nodes]
        states = [state.dtype for node in nodes for state in node.autocast if state.enabled]
        held = [weight.dtype for weight in self.weights().values()]
        return {kind for kind in (*self._dtypes, *states, *held) if kind.is_floating_point}

    def weights(self) -> dict[str, Tensor]:
        """Return every parameter and buffer that a replay reads, by dotted path."""
        return weights_of([self.slice.graph.nodes[number] for number in self.slice.nodes])

    def _replacement(self, features: Tensor, given: Mapping[int, Tensor]) -> Weights:
        # Features in another precision than recorded take the weights along, so that a head
        # stored in half precision can be run, and trained, in float32.
        recast = features.is_floating_point()
        recorded = {dtype for dtype in self._dtypes if recast and dtype.is_floating_point}

        def replace(weight: Tensor) -> Tensor:
            weight = given.get(id(weight), weight)
            return weight.to(features.dtype) if weight.dtype in recorded else weight

        return replace

    def _call(
        self, node: Node, values: dict[int, Tensor], features: Tensor, replace: Weights
    ) -> None:
        replaced = {old: values[old].clone() for old, _ in node.mutated}

        def decode(leaf: object) -> object:
            if isinstance(leaf, Use):
                return replaced[leaf.value] if leaf.value in replaced else self._read(leaf, values)
            if isinstance(leaf, WeightUse):
                weight = replace(leaf.read())
                return weight if node.module is not None else _follow_device(weight, features)
            if isinstance(leaf, BatchMultiple):
                return leaf.factor * len(features)
            if isinstance(leaf, torch.device) and leaf == self.device:
                return features.device
            return leaf

        args, kwargs = map_leaves(node.args, decode), map_leaves(node.kwargs, decode)
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise TypeError("containers keep their kind")
        with ExitStack() as stack:
            for state in node.autocast:
                stack.enter_context(
                    torch.autocast(state.device, dtype=state.dtype, enabled=state.enabled)
                )
            result = _invoke(node, args, kwargs, replace)
        for old, new in node.mutated:
            values[new] = replaced[old]
        for path, value in node.outputs:
            made = follow(result, path)
            if isinstance(made, Tensor) and value not in values:
                values[value] = made

    def _read(self, use: Use, values: dict[int, Tensor]) -> Tensor:
        if use.value in values:
            return values[use.value]
        constant = self.slice.graph.values[use.value].constant
        if constant is None:
            raise LookupError(f"value {use.value} was not computed before it is read")
        cut = values[self.slice.cuts[0]]
        return constant.to(cut.device) if constant.device == self.device else constant


def weights_of(nodes: list[Node]) -> dict[str, Tensor]:
    """Return the parameters and buffers that ``nodes`` read, by dotted path, each once."""
    found: dict[str, Tensor] = {}
    for node in nodes:
        if node.module is not None:
            held = [*node.module.named_parameters(), *node.module.named_buffers()]
            found.update({f"{node.name}.{name}": tensor for name, tensor in held})
        for _, leaf in node.operands():
            if isinstance(leaf, WeightUse):
                found[leaf.path] = leaf.read()
    unique: dict[int, str] = {}
    for path, tensor in found.items():
        unique.setdefault(id(tensor), path)
    return {path: found[path] for path in unique.values()}


def _follow_device(weight: Tensor, features: Tensor) -> Tensor:
    return weight if weight.device == features.device else weight.to(features.device)


def _invoke(
    node: Node, args: tuple[object, ...], kwargs: dict[str, object], replace: Weights
) -> object:
    module = node.module
    if module is None:
        if node.function is None:
            raise TypeError(f"{node.name} is neither a module nor a function")
        return node.function(*args, **kwargs)
    swapped = _swapped(module, replace)
    if not swapped:
        return module(*args, **kwargs)
    return functional_call(module, swapped, args, kwargs)


def _swapped(module: nn.Module, replace: Weights) -> dict[str, Tensor]:
    held = [*module.named_parameters(), *module.named_buffers()]
    changed = {name: (tensor, replace(tensor)) for name, tensor in held}
    return {name: new for name, (old, new) in changed.items() if new is not old}
