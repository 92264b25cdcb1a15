"""Selecting or averaging tokens before the head instead of after it, to shrink the features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from forgetkit.dryrun.graph import Node, Use
from forgetkit.dryrun.nesting import map_leaves
from forgetkit.dryrun.slicing import Slice


@dataclass(frozen=True)
class Compaction:
    """A step that stood after the head and commutes with it.

    Args:
        node: the recorded call.
        value: the value it read, which the features now replace.
        shape: shape of one sample's features after it.
    """

    node: Node
    value: int
    shape: tuple[int, ...]

    def apply(self, features: Tensor) -> Tensor:
        """Select or average tokens; the last axis is untouched."""
        args = map_leaves(self.node.args, lambda leaf: features if isinstance(leaf, Use) else leaf)
        if self.node.function is None or not isinstance(args, tuple):
            raise TypeError("only functions are moved")
        result = self.node.function(*args, **self.node.kwargs)
        if not isinstance(result, Tensor):
            raise TypeError(f"{self.node.name} returned {type(result).__name__}")
        return result.clone() if result._is_view() else result  # noqa: SLF001 - frees the base


def compact(found: Slice) -> Compaction | None:
    """Move the first step after a single Linear to before it, where that changes nothing.

    A Linear acts on each token alone, so choosing tokens, or averaging them, commutes with it;
    the average does because weights of a mean sum to one. ``found`` is changed in place.
    """
    if len(found.affines) != 1 or len(found.cuts) != 1 or found.folded:
        return None
    affine = found.graph.nodes[found.affines[0]]
    if not isinstance(affine.module, nn.Linear) or len(affine.outputs) != 1:
        return None
    path, scores = affine.outputs[0]
    readers = [
        number
        for number in found.nodes
        if any(value == scores for _, value in found.graph.nodes[number].uses())
    ]
    if len(readers) != 1 or found.target == scores:
        return None
    step = found.graph.nodes[readers[0]]
    cut = found.graph.values[found.cuts[0]]
    if not _commutes(step, len(cut.shape)) or len(step.outputs) != 1 or step.mutated:
        return None
    chosen = step.outputs[0][1]
    affine.outputs = [(path, chosen)]
    found.nodes = [number for number in found.nodes if number != readers[0]]
    shape = (*found.graph.values[chosen].shape[1:-1], cut.shape[-1])
    return Compaction(step, scores, shape)


def _commutes(step: Node, rank: int) -> bool:
    if step.module is not None or rank < 3 or len(step.uses()) != 1:
        return False
    if step.name == "__getitem__":
        return _selects_tokens(step.args[1], rank)
    if step.name in ("mean", "select"):
        axes = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
        listed = axes if isinstance(axes, tuple | list) else [axes]
        whole = [axis % rank for axis in listed if isinstance(axis, int)]
        plain = set(step.kwargs) <= {"dim", "keepdim", "index"}
        return plain and len(whole) == len(listed) and all(0 < axis < rank - 1 for axis in whole)
    return False


def _selects_tokens(index: object, rank: int) -> bool:
    if not isinstance(index, tuple) or not 1 < len(index) < rank:
        return False
    whole = index[0] == slice(None)
    return whole and all(isinstance(item, int | slice) for item in index[1:])
