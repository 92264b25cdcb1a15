"""One function for every classifier: `adapt` finds its features and its head."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from forgetkit.dryrun.detection import Wish, detect
from forgetkit.dryrun.examples import Example
from forgetkit.dryrun.hints import (
    class_count_hint,
    example_inputs,
    find_adapter,
    has_classifier,
    has_identity_classifier,
    head_name_hints,
    unwrap,
)
from forgetkit.dryrun.outputs import OutputChoice, logits_of
from forgetkit.dryrun.quiet import eval_mode
from forgetkit.dryrun.refusals import refusal
from forgetkit.dryrun.split import Split
from forgetkit.errors import CannotSplitModel, ModelError
from forgetkit.model_errors import in_one_sentence
from forgetkit.types import Inputs

_log = logging.getLogger(__name__)

__all__ = [
    "Split",
    "adapt",
    "class_count_hint",
    "example_inputs",
    "find_adapter",
    "logits_of",
    "unwrap",
]


def adapt(
    model: nn.Module,
    example_inputs: Example,
    *,
    head: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    output: OutputChoice = None,
    verify: bool = True,
) -> Split:
    """Split a classifier into features and head by recording one forward pass.

    The model is left as it was: no hook, flag, buffer or random state changes.

    Args:
        model: any ``nn.Module`` that returns class scores (batch, classes); compiled,
            data-parallel, PEFT and ``accelerate`` wrappers are seen through.
        example_inputs: one batch as the model gets it: a tensor, a tuple (by position) or a
            mapping (by keyword). The first two samples are used, on the model's device.
        head: dotted path(s) of the head's module(s), to overrule detection.
        num_classes: the number of classes that the output must have.
        output: key, index or function that leads to the logits in the model's output.
        verify: whether to check the result on other inputs (one forward of two samples).

    Returns:
        A `forgetkit.view.ModelView`.

    Raises:
        ModelError: when ``model`` is no module.
        CannotSplitModel: with a code from ``docs/adapters.md`` and what to do about it.
        DataError: the model does not take the example.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model should be a torch.nn.Module, found {type(model).__name__}; build or load the "
            "model first."
        )
    bare = unwrap(model)
    hint = class_count_hint(bare)
    _refuse_early(bare, hint)
    hint = hint or None  # the 0 of an encoder that was given a classifier of its owner's
    names = () if head is None else (head,) if isinstance(head, str) else tuple(head)
    wish = Wish(names, num_classes if num_classes is not None else hint, output)
    try:
        with in_one_sentence("adapt()"):
            split = detect(bare, example_inputs, wish, verify=verify)
    except CannotSplitModel as reason:
        if reason.code in ("features-not-logits", "no-affine") and has_identity_classifier(bare):
            raise _headless(bare) from reason
        raise
    _check_classes(bare, split, num_classes, hint)
    return split


def example_logits(model: nn.Module, inputs: Inputs, output: OutputChoice = None) -> Tensor:
    """Return the logits of the first two samples, (2, classes), from one pass in eval mode.

    What the model says of itself goes stale when its classifier is replaced; it only tells which
    of several outputs holds the logits.

    Args:
        model: left as it was.
        inputs: a batch where the model is; two samples of it are used.
        output: key, index or function that leads to the logits.

    Raises:
        CannotSplitModel: the output holds no logits, or several tensors that could be, or the
            model has no classifier.
    """
    if class_count_hint(model) == 0 and has_identity_classifier(model):
        raise _headless(model)
    with torch.no_grad(), eval_mode(model):
        if isinstance(inputs, Tensor):
            found = model(inputs[:2])
        else:
            found = model(**{name: value[:2] for name, value in inputs.items()})
    return logits_of(found, output, num_classes=class_count_hint(model) or None)


def width_of(model: nn.Module, inputs: Inputs, output: OutputChoice = None) -> int:
    """Return the number of classes, as ``example_logits`` shows it; errors as there."""
    return int(example_logits(model, inputs, output).shape[1])


def _refuse_early(model: nn.Module, hint: int | None) -> None:
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise refusal(
            "opaque",
            "model should be an eager module, but it is TorchScript, which hides its steps; pass "
            "the module that it was scripted from.",
        )
    lazy = UninitializedParameter | UninitializedBuffer
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, lazy):
            raise refusal(
                "lazy",
                f"model should have all its parameters, but {name} has no shape yet; run the model "
                "once on a batch first.",
            )
    if hint == 0 and not has_classifier(model):
        raise _headless(model)


def _headless(model: nn.Module) -> CannotSplitModel:
    return refusal(
        "headless",
        f"model should be a classifier, but this {type(model).__name__} has none "
        "(num_classes=0 or an Identity in its place); build it with the number of classes.",
    )


def _check_classes(model: nn.Module, split: Split, wanted: int | None, hint: int | None) -> None:
    names = head_name_hints(model)
    if names and not set(names) & set(split.head_names):
        _log.info("head found at %s, the model's own hint is %s", split.head_name, names)
    if wanted is not None and split.num_classes != wanted:
        raise refusal(
            "classes",
            f"num_classes={wanted} should be the width of the logits, but the output has "
            f"{split.num_classes}; pass num_classes={split.num_classes}, or output= if the logits "
            "are elsewhere.",
        )
    # A user who replaced the head leaves the attribute behind, so it only counts when the layer
    # that was found is not the one known as the classifier.
    stale = any(
        name == known or name.startswith(f"{known}.")
        for known in names
        for name in split.head_names
    )
    if wanted is None and hint is not None and split.num_classes != hint and not stale:
        raise refusal(
            "classes",
            f"the model says it has {hint} classes, but its output has {split.num_classes}, made "
            f"by {split.head_name}; pass num_classes={split.num_classes} if that is right, or "
            "output= if the logits are elsewhere.",
        )
