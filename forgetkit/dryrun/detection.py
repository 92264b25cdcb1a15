"""From a model and an example to a `Split`: record, slice, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetkit.dryrun import outputs as output_finding
from forgetkit.dryrun import verification
from forgetkit.dryrun.broadcasts import broadcast_weight
from forgetkit.dryrun.capture import sources
from forgetkit.dryrun.compaction import compact
from forgetkit.dryrun.examples import (
    Example,
    batch_size,
    beside,
    call,
    first_rows,
    one_more,
    with_fresh,
)
from forgetkit.dryrun.graph import Node
from forgetkit.dryrun.nesting import tensors
from forgetkit.dryrun.outputs import OutputChoice, Pick
from forgetkit.dryrun.packing import Packing
from forgetkit.dryrun.program import Program
from forgetkit.dryrun.quiet import eager, eval_mode, same_random_state
from forgetkit.dryrun.recording import Recorder
from forgetkit.dryrun.refusals import refusal
from forgetkit.dryrun.slicing import Slice, multiples, slice_at, slice_back
from forgetkit.dryrun.split import Split
from forgetkit.errors import CannotSplitModel

_SHAPERS = frozenset(
    {
        "view", "reshape", "expand", "repeat", "split", "chunk", "tensor_split", "unflatten",
        "new_zeros", "new_ones", "new_empty", "new_full", "zeros", "ones", "empty", "full",
        "arange", "narrow", "repeat_interleave", "tile", "rearrange", "as_strided", "resize_",
        "broadcast_to", "linspace", "rand", "randn", "split_with_sizes", "mul", "div", "truediv",
        "__truediv__", "__mul__", "__rmul__", "__getitem__", "add", "sub",
    }
)  # fmt: skip


@dataclass
class _Recording:
    """One recorded forward."""

    recorder: Recorder
    found: list[tuple[Pick, int | None, Tensor]]
    batch: int


@dataclass(frozen=True)
class Wish:
    """What the caller said about the model.

    Args:
        head: names of the modules that are the head; empty for automatic.
        num_classes: width of the logits.
        output: where the logits are in the output.
    """

    head: tuple[str, ...] = ()
    num_classes: int | None = None
    output: OutputChoice = None


def detect(model: nn.Module, example: Example, wish: Wish, *, verify: bool) -> Split:
    """Find features and head of an unwrapped model.

    Args:
        model: without compile and data-parallel wrappers.
        example: one batch; the first two samples are used.
        wish: the caller's hints.
        verify: whether to check on other inputs, one more forward of two samples.

    Raises:
        CannotSplitModel: see ``docs/adapters.md`` for the codes.
    """
    example = beside(model, first_rows(example, 2))
    held = tensors(example)
    with eval_mode(model), eager(), same_random_state(held), torch.no_grad():
        recording = _record(model, example, wish)
        split, logits = _first_accepted(model, recording, wish)
        _batch_proof(model, example, wish, recording, split)
        on_meta = any(tensor.is_meta for tensor in (*held, logits))
        if verify and not on_meta:
            _verify(split, example, logits)
    return split


def _record(model: nn.Module, example: Example, wish: Wish) -> _Recording:
    watch = {name: module_named(model, name) for name in wish.head}
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        Recorder(model, tensors(example), watch) as recorder,
    ):
        output = call(model, example)
        picks = output_finding.choices(output, wish.output, wish.num_classes)
        logits = [pick(output) for pick in picks]
    found = [
        (pick, recorder.value_of(tensor), tensor)
        for pick, tensor in zip(picks, logits, strict=True)
    ]
    return _Recording(recorder, found, batch_size(example))


def _first_accepted(model: nn.Module, recording: _Recording, wish: Wish) -> tuple[Split, Tensor]:
    """Slice every candidate; keep the one that is accepted, or say why none or several are."""
    accepted: list[tuple[Split, Tensor]] = []
    reasons: list[CannotSplitModel] = []
    for pick, value, logits in recording.found:
        try:
            accepted.append((_split(model, recording, wish, pick, value, logits), logits))
        except CannotSplitModel as reason:
            reasons.append(reason)
    hinted = [item for item in accepted if item[0].num_classes == wish.num_classes]
    accepted = hinted or accepted
    if len(accepted) > 1:
        raise output_finding.ambiguous([split.pick for split, _ in accepted])
    if not accepted:
        raise reasons[0]
    return accepted[0]


def _split(
    model: nn.Module,
    recording: _Recording,
    wish: Wish,
    pick: Pick,
    value: int | None,
    logits: Tensor,
) -> Split:
    if logits.dim() != 2 or len(logits) != recording.batch:
        raise output_finding.not_logits(tuple(logits.shape))
    if value is None:
        raise refusal(
            "opaque",
            "the model's output should be made by visible steps, but a scripted, compiled or "
            "custom operation made it. Pass the eager model.",
        )
    graph = recording.recorder.graph
    watched = recording.recorder.watched
    if wish.head:
        stop = {number for item in watched for _, number in item.uses if graph.values[number].data}
        _check_called(wish.head, [item.name for item in watched])
        found = slice_at(graph, value, stop, "+".join(wish.head))
    else:
        found = slice_back(graph, value)
    compaction = None if wish.head else compact(found)
    shapes = [graph.values[cut].shape for cut in found.cuts]
    _check_batch_first(found, shapes, recording.batch)
    packed = [compaction.shape] if compaction else [shape[1:] for shape in shapes]
    program = Program(found, logits.device)
    split = Split(
        model,
        pick,
        program,
        sources(found, watched),
        Packing(tuple(packed)),
        compaction,
        wish.head,
    )
    if not wish.head:
        _check_nothing_mixes_after(split)
    return split


def _check_nothing_mixes_after(split: Split) -> None:
    """Refuse a cut at a hidden layer: a product with weights follows that broadcasting hides."""
    weight = broadcast_weight(split.program.slice)
    # Sums of a class's own scores are written so as well; those leave the classes apart.
    if weight is None or split.separable:
        return
    raise refusal(
        "features-not-logits",
        f"the last layer found, {split.head_name}, should make the class scores, but its output is "
        f"compared with the rows of {weight} by broadcasting, so that it is a hidden layer. "
        f"Use a method that trains the whole network, or build the model with {weight} and the "
        "calls that read it in a module of their own, or with torch.cdist or a matrix product.",
    )


def _check_called(names: Sequence[str], called: Sequence[str]) -> None:
    for name in names:
        if name not in called:
            raise refusal(
                "not-reached",
                f"head={name!r} should be called in every forward pass, but it was not for this "
                "example. Pass the name of a module on the way to the logits.",
            )


def _check_batch_first(found: Slice, shapes: list[tuple[int, ...]], batch: int) -> None:
    for cut, shape in zip(found.cuts, shapes, strict=True):
        if not shape or shape[0] != batch:
            maker = found.graph.makers(cut)
            raise refusal(
                "batch-first",
                f"features should be one row a sample, but what the head reads has shape {shape} "
                f"for a batch of {batch} (made by {maker.label() if maker else 'the input'}): "
                "windows, crops or time are folded into the batch. Pass head= with the module "
                "that follows the unfolding.",
            )


def _batch_proof(
    model: nn.Module, example: Example, wish: Wish, recording: _Recording, split: Split
) -> None:
    """Find integers that follow the batch size by a second record with one more sample."""
    found = split.program.slice
    suspects = [
        node
        for number in found.nodes
        if (node := found.graph.nodes[number]).module is None
        and node.name in _SHAPERS
        and _holds_multiple(node, recording.batch)
    ]
    if not suspects:
        return
    bigger = _record(model, one_more(example), wish)
    second = next(value for pick, value, _ in bigger.found if pick == split.pick)
    if second is None:
        raise refusal("opaque", "the output was made by visible steps for one batch size only.")
    graph, watched = bigger.recorder.graph, bigger.recorder.watched
    if wish.head:
        stop = {number for item in watched for _, number in item.uses if graph.values[number].data}
        other = slice_at(graph, second, stop, "+".join(wish.head))
    else:
        other = slice_back(graph, second)
        compact(other)
    multiples(found, other, recording.batch, recording.batch + 1)


def _holds_multiple(node: Node, batch: int) -> bool:
    return any(
        isinstance(leaf, int) and not isinstance(leaf, bool) and leaf > 0 and leaf % batch == 0
        for _, leaf in node.operands()
    )


def _verify(split: Split, example: Example, recorded: Tensor) -> None:
    features, logits = split.features_and_logits(with_fresh(example))
    in_head = {logits.dtype, *split.program.precisions()}
    everywhere = {*in_head, *(weight.dtype for weight in split.model.parameters())}
    exact = verification.exactness(in_head)
    verification.check_replay(split.head(features), logits, split.tail, exact)
    verification.check_rows(split.head(features[1:]), logits[1:], "leaving a sample out", exact)
    verification.check_rows(split.head(features.flip(0)), logits.flip(0), "another order", exact)
    verification.check_repeat(logits[:1], recorded[:1], verification.exactness(everywhere))


def module_named(model: nn.Module, name: str) -> nn.Module:
    """Return a module by its dotted path.

    Raises:
        CannotSplitModel: ``not-reached`` when there is none; the message lists close names.
    """
    import difflib

    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name in modules and name:
        return modules[name]
    near = difflib.get_close_matches(name, [path for path in modules if path], 3, 0.3)
    raise refusal(
        "not-reached",
        f"head={name!r} should be the dotted path of a module of {type(model).__name__}, but "
        f"there is none; did you mean {', '.join(near) or 'one of named_modules()'}?",
    )
