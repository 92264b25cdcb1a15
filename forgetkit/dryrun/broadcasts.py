"""Finding products with weights that are written as broadcasting, which no call's name tells."""

from __future__ import annotations

from collections import defaultdict
from math import prod

from forgetkit.dryrun.atoms import is_matrix
from forgetkit.dryrun.graph import Graph
from forgetkit.dryrun.records import call_weights
from forgetkit.dryrun.slicing import Slice

_COPIES = frozenset(
    {"expand", "expand_as", "repeat", "repeat_interleave", "tile", "broadcast_to", "unsqueeze"}
)


def broadcast_weight(found: Slice) -> str | None:
    """Name the matrix of weights that a tail holds copies of its data against, if there is one.

    ``f[:, None] - W`` is one such call and ``[f - w for w in W]`` are several: what they make of
    ``f`` is larger than ``f``. A matrix that scales data of its own shape is none.
    """
    graph = found.graph
    made: dict[str, int] = defaultdict(int)
    read: dict[str, set[int]] = defaultdict(set)
    for node in found.tail():
        if node.module is not None:
            continue
        for path, weight in call_weights(node, graph).items():
            if is_matrix(weight):
                made[path] += sum(_numel(graph, value) for _, value in node.outputs)
                read[path] |= {
                    _before_copying(graph, value)
                    for _, value in node.uses()
                    if graph.values[value].data
                }
    grown = (path for path in made if made[path] > sum(_numel(graph, v) for v in read[path]))
    return next(grown, None)


def _numel(graph: Graph, value: int) -> int:
    return prod(graph.values[value].shape)


def _before_copying(graph: Graph, value: int) -> int:
    maker = graph.makers(value)
    while maker is not None and maker.name in _COPIES and maker.uses():
        value = maker.uses()[0][1]
        maker = graph.makers(value)
    return value
