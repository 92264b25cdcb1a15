"""Walking the nested tuples, lists, mappings and slices that calls take and return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


def map_leaves(tree: object, change: Callable[[object], object]) -> object:
    """Rebuild ``tree`` with every leaf replaced by ``change(leaf)``; containers keep their kind."""
    if isinstance(tree, torch.Size):
        return tuple(change(item) for item in tree)
    if isinstance(tree, tuple):
        items = [map_leaves(item, change) for item in tree]
        rebuild: Callable[..., object] = type(tree)
        return rebuild(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [map_leaves(item, change) for item in tree]
    if isinstance(tree, dict):
        return {key: map_leaves(item, change) for key, item in tree.items()}
    if isinstance(tree, slice):
        parts = (map_leaves(part, change) for part in (tree.start, tree.stop, tree.step))
        return slice(*parts)
    return change(tree)


def paths(
    tree: object, prefix: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    """Yield (path, tensor) for every tensor in ``tree``, in a fixed order."""
    if isinstance(tree, Tensor):
        yield prefix, tree
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from paths(item, (*prefix, key))
    elif isinstance(tree, tuple | list):
        for position, item in enumerate(tree):
            yield from paths(item, (*prefix, position))
    elif isinstance(tree, slice):
        yield from paths((tree.start, tree.stop, tree.step), prefix)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from paths(getattr(tree, field.name), (*prefix, field.name))


def follow(tree: object, path: tuple[str | int, ...]) -> object:
    """Return what lies at ``path``; raises LookupError or AttributeError when nothing does."""
    for step in path:
        if isinstance(tree, Mapping) or isinstance(step, int):
            tree = tree[step]  # type: ignore[index]
        else:
            tree = getattr(tree, step)
    return tree


def tensors(tree: object) -> list[Tensor]:
    """Return the tensors in ``tree``, in the order of `paths`."""
    return [tensor for _, tensor in paths(tree)]
