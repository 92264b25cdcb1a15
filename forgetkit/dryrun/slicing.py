"""Walking back from the logits to the last calls that multiply data with learned weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from forgetkit.dryrun.atoms import is_affine, is_batch_norm
from forgetkit.dryrun.graph import BatchMultiple, Graph, Node
from forgetkit.dryrun.refusals import refusal

_FOLD_LIMIT = 4  # calls; LoRA needs one, a cast makes two
_FEW = 4  # heads of any shape; more must each be as wide as the classes


@dataclass
class Slice:
    """The part of the graph between the features and the logits.

    Args:
        graph: the record.
        target: the value that is the logits.
        cuts: the values that are the features, in the order they were made.
        affines: numbers of the final affine calls, in call order.
        folded: numbers of calls before them that replay repeats, because one cut is computed
            from another.
        nodes: numbers of all calls to replay, in call order.
    """

    graph: Graph
    target: int
    cuts: list[int] = field(default_factory=list)
    affines: list[int] = field(default_factory=list)
    folded: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Number of classes."""
        return self.graph.values[self.target].shape[1]

    def tail(self) -> list[Node]:
        """Return the calls after the affine ones, in order."""
        skipped = {*self.affines, *self.folded}
        return [
            self.graph.nodes[number]
            for number in self.nodes
            if number not in skipped and self._is_data(number)
        ]

    def _is_data(self, number: int) -> bool:
        return any(self.graph.values[value].data for _, value in self.graph.nodes[number].uses())


class _Walk:
    """One walk from values back to their makers."""

    def __init__(self, graph: Graph, stop: Collection[int], *, through_affines: bool) -> None:
        self.graph = graph
        self.stop = stop
        self.through_affines = through_affines
        self.nodes: set[int] = set()
        self.affines: set[int] = set()
        self.cuts: set[int] = set()
        self.opaque: set[int] = set()
        self.inputs: dict[int, str] = {}

    def run(self, start: int) -> None:
        pending = [(start, "the output itself")]
        while pending:
            value, reader = pending.pop()
            if value in self.stop:
                self.cuts.add(value)
                continue
            seen = self.graph.values[value]
            if seen.origin == "input":
                self.inputs[value] = reader
            elif seen.origin == "stale" or (seen.origin == "unknown" and seen.constant is None):
                self.opaque.add(value)
            if seen.node < 0 or seen.node in self.nodes:
                continue
            node = self.graph.nodes[seen.node]
            self.nodes.add(seen.node)
            affine = seen.data and is_affine(node, self.graph)
            if affine:
                self.affines.add(seen.node)
            for _, operand in node.uses():
                if affine and not self.through_affines and self.graph.values[operand].data:
                    self.cuts.add(operand)
                else:
                    pending.append((operand, node.label()))


def slice_back(graph: Graph, target: int) -> Slice:
    """Cut the graph at the data inputs of the final affine calls.

    Raises:
        CannotSplitModel: ``no-affine``, ``skip-input``, ``opaque`` or ``features-not-logits``.
    """
    walk = _Walk(graph, (), through_affines=False)
    walk.run(target)
    _check_reach(walk)
    cuts, folded = _fold(graph, sorted(walk.cuts), walk.affines)
    found = Slice(
        graph,
        target,
        cuts=cuts,
        affines=sorted(walk.affines),
        folded=sorted(folded),
        nodes=sorted(walk.nodes | folded),
    )
    _check_heads(found)
    return found


def slice_at(graph: Graph, target: int, stop: Collection[int], named: str) -> Slice:
    """Cut the graph at the given values, because the caller named the head.

    Raises:
        CannotSplitModel: ``skip-input`` or ``opaque`` when paths go around the named head.
    """
    walk = _Walk(graph, stop, through_affines=True)
    walk.run(target)
    if walk.inputs or not walk.cuts:
        around = ", ".join(sorted(set(walk.inputs.values()))) or "calls before it"
        raise refusal(
            "skip-input",
            f"head={named!r} should be where all paths to the logits pass, but the logits also "
            f"depend on the input by {around}. Name every module that they pass, as a list.",
        )
    _check_opaque(walk)
    last = _Walk(graph, stop, through_affines=False)
    last.run(target)
    return Slice(
        graph,
        target,
        cuts=sorted(walk.cuts),
        affines=sorted(last.affines),
        folded=sorted(walk.affines - last.affines),
        nodes=sorted(walk.nodes),
    )


def _check_reach(walk: _Walk) -> None:
    _check_opaque(walk)
    if not walk.affines:
        raise refusal(
            "no-affine",
            "the model should multiply features with learned weights on the way to its output, "
            "but no Linear, convolution or matrix product was found there. Pass head= with the "
            "name of the module that makes the class scores, or add a classifier.",
        )
    if walk.inputs:
        raise refusal(
            "skip-input",
            "the logits should depend on the input through the head's features only, but they also "
            f"read it directly in {', '.join(sorted(set(walk.inputs.values())))}; a head on "
            "features alone cannot reproduce them. Pass head= with all modules on the way, or "
            "use a method that trains the whole network.",
        )


def _check_opaque(walk: _Walk) -> None:
    if not walk.opaque:
        return
    kinds = {walk.graph.values[value].origin for value in walk.opaque}
    cause = (
        "a tensor is changed in place through a view"
        if kinds == {"stale"}
        else "a scripted, compiled or custom operation makes a tensor that was not seen being made"
    )
    raise refusal(
        "opaque",
        f"every step from the head to the logits should be visible, but {cause}. Pass the eager "
        "model, or pass head= with the module around that step.",
    )


def _fold(graph: Graph, cuts: list[int], affines: set[int]) -> tuple[list[int], set[int]]:
    """Drop the cuts that are computed from the others within a few calls."""
    kept = list(cuts)
    folded: set[int] = set()
    for cut in sorted(cuts, reverse=True):
        others = [value for value in kept if value != cut]
        if not others:
            break
        walk = _Walk(graph, others, through_affines=True)
        walk.run(cut)
        if len(walk.nodes - affines) <= _FOLD_LIMIT and not walk.inputs and not walk.opaque:
            kept = others
            folded |= walk.nodes - affines
    return kept, folded


def _check_heads(found: Slice) -> None:
    graph, width = found.graph, found.width
    shaped = [
        any(width in graph.values[value].shape[1:] for _, value in graph.nodes[number].outputs)
        for number in found.affines
    ]
    norm = next((node for node in found.tail() if is_batch_norm(node)), None)
    many = len(found.affines) > _FEW and not all(shaped)
    if not many and norm is None and not _chained(found):
        return
    names = [graph.nodes[number].label() for number in found.affines]
    shown = ", ".join(names[-_FEW:]) + (" and others" if len(names) > _FEW else "")
    cause = f"the batch normalisation {norm.label()} follows" if norm else "they feed each other"
    raise refusal(
        "features-not-logits",
        f"the output, {width} wide, should be the scores of {width} classes; it looks like "
        f"features: it is made by {shown}, and {cause if norm or not many else 'they are many'}. "
        "If it is the scores, pass head= with the last module's name; otherwise build the model "
        "with a classifier.",
    )


def _chained(found: Slice) -> bool:
    """Tell whether a cut depends on the output of a final affine call: a residual stream."""
    if len(found.cuts) < 2:
        return False
    walk = _Walk(found.graph, (), through_affines=True)
    for cut in found.cuts:
        walk.run(cut)
    return bool(walk.nodes & set(found.affines))


def multiples(first: Slice, second: Slice, batch: int, bigger: int) -> None:
    """Mark in ``first`` the integers that follow the batch size, by comparing two records.

    Args:
        first: slice recorded with ``batch`` rows; changed in place.
        second: the same recorded with ``bigger`` rows.
        batch: rows of the first record.
        bigger: rows of the second record.

    Raises:
        CannotSplitModel: ``batch-baked`` when the programs differ in any other way.
    """
    ours = [first.graph.nodes[number] for number in first.nodes]
    theirs = [second.graph.nodes[number] for number in second.nodes]
    if [node.name for node in ours] != [node.name for node in theirs]:
        raise _baked("another sequence of calls")
    for node, other in zip(ours, theirs, strict=True):
        args = _merge(node.args, other.args, batch, bigger, node.label())
        kwargs = _merge(node.kwargs, other.kwargs, batch, bigger, node.label())
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise _baked(node.label())
        node.args, node.kwargs = args, kwargs


def _merge(ours: object, theirs: object, batch: int, bigger: int, label: str) -> object:
    if isinstance(ours, bool) or not isinstance(ours, int | float | tuple | list | dict | slice):
        return ours
    if type(ours) is not type(theirs):
        raise _baked(label)
    if isinstance(ours, slice) and isinstance(theirs, slice):
        parts = ((ours.start, theirs.start), (ours.stop, theirs.stop), (ours.step, theirs.step))
        return slice(*(_merge(a, b, batch, bigger, label) for a, b in parts))
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        if len(ours) != len(theirs):
            raise _baked(label)
        items = [_merge(a, b, batch, bigger, label) for a, b in zip(ours, theirs, strict=True)]
        return items if isinstance(ours, list) else tuple(items)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return {key: _merge(ours[key], theirs.get(key), batch, bigger, label) for key in ours}
    if ours == theirs:
        return ours
    if isinstance(ours, int) and isinstance(theirs, int):
        factor, rest = divmod(ours, batch)
        if rest == 0 and factor * bigger == theirs:
            return BatchMultiple(factor)
    raise _baked(label)


def _baked(label: str) -> Exception:
    return refusal(
        "batch-baked",
        f"the code after the head should treat every sample alike, but {label} depends on the "
        "batch size in a way that cannot be replayed. Pass head= with a module that contains "
        "that step, or write the step with -1 or x.shape[0].",
    )
