"""From a request and a loader to checked, split, detected input. Nothing changes here."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from forgetkit.adapting import adapt, example_logits, logits_of, unwrap
from forgetkit.data.loaders import Loader
from forgetkit.data.names import class_names
from forgetkit.data.overlap import in_common, taken
from forgetkit.data.randomness import repeats
from forgetkit.data.split import split
from forgetkit.dryrun.outputs import are_probabilities
from forgetkit.engine import checks
from forgetkit.engine.modes import evaluating
from forgetkit.engine.peeking import peeked
from forgetkit.engine.place import moved_inputs
from forgetkit.errors import BadTarget, CannotSplitModel, ModelError
from forgetkit.goal import Classes, Goal, resolve_classes
from forgetkit.method import Facts, Method
from forgetkit.types import Inputs, SampleSet, Sets
from forgetkit.view import ModelView

if TYPE_CHECKING:
    from forgetkit.api import Request

logger = logging.getLogger("forgetkit")


PROBABILITIES = (
    "the model's outputs look like probabilities (none is negative and each row sums to 1), and "
    "are taken as logits; end the model before its softmax, or say where the logits are with "
    ".head(..., output=...)"
)


def _validated_on_others(request: Request, loader: Loader) -> tuple[str, ...]:
    """Return a note where validation data are training samples, as far as loaders can tell."""
    if request.validation_loader is None:
        return ()
    for name, other in (("run", loader), ("retain", request.retain_loader)):
        found = "" if other is None else in_common(request.validation_loader, other)
        if found:
            return (
                f"validate: it is given {found} as .{name}(...), so the figures on it are no "
                "figures on unseen samples, and the run stops by what it trains on; pass samples "
                "that the model was not trained on",
            )
    return ()


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked.

    Args:
        model: the user's model without wrappers that hide it (compiled, data parallel).
        view: the split model, only for methods that edit the head or read features.
        method: with defaults filled in that depend on model and data.
        goal: what was asked for.
        forget_classes: class indices, empty unless the goal is ``classes``.
        num_classes: width of the logits.
        class_names: by class index, or ``None``.
        sets: D_f (the part that the method chose), D_r, nothing else.
        validation: validation samples, of retained and of forgotten classes.
        random_inputs: whether the loader gives different tensors each time it is read.
        why: why ``"auto"`` chose the method.
        notes: sentences for the user about what was found.
    """

    model: nn.Module
    view: ModelView | None
    method: Method
    goal: Goal
    forget_classes: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None
    sets: Sets
    validation: dict[str, SampleSet]
    random_inputs: bool
    why: str | None = None
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Return the number of samples of each set."""
        sizes = {"forget": len(self.sets.forget)}
        if self.sets.retain is not None:
            sizes["retain"] = len(self.sets.retain)
        return sizes | {name: len(samples) for name, samples in self.validation.items()}


def prepare(request: Request, loader: Loader, *, watched: int) -> Prepared:
    """Check and split everything that a request names.

    Args:
        request: has a goal and a method.
        loader: what ``run`` was given.
        watched: how many retained samples a guard will look at at most, 0 without one.

    Raises:
        ForgetkitError: the input cannot be used; the message says why.
    """
    goal = request.goal
    if goal is None or request.method is None:
        raise BadTarget("run(): expected a goal and a method, found none; set both first")
    model = unwrap(request.model)
    checks.check_model(model)
    checks.check_not_quantised(model)
    checks.check_takes_gradients(model)
    named = request.method if isinstance(request.method, Method) else None
    if named is not None:
        checks.check_goal(named, goal)
    names = class_names(model, loader)
    notes = _validated_on_others(request, loader)
    loader, first = peeked(loader)
    here = next(model.parameters()).device
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    example = moved_inputs(first, here, dtype)
    view = None if named is None else _view(request, model, named, example)
    logits = example_logits(model, example, request.output)
    num_classes = view.num_classes if view is not None else int(logits.shape[1])
    forget_classes: tuple[int, ...] = ()
    if isinstance(goal, Classes):
        forget_classes = resolve_classes(goal, num_classes, names)
    needs_retain = named is not None and "retain" in named.needs
    sets = split(
        loader,
        goal,
        num_classes=num_classes,
        forget_classes=forget_classes,
        retain=request.retain_loader if needs_retain or watched or named is None else None,
        validate=request.validation_loader,
        need_retain=needs_retain,
        # "auto" may choose a method that reads them
        spare=None if needs_retain or named is None else watched,
        seed=request.random_seed,
    )
    facts = Facts(
        goal=goal.kind,
        forget_size=len(sets.forget),
        retain_size=0 if sets.retain is None else len(sets.retain),
        num_classes=num_classes,
        transformer=_is_transformer(model),
    )
    method, why = named, None
    if method is None:
        method, why = _chosen(request, model, facts, sets, example)
        view = _view(request, model, method, example)
    checks.check_sets(method, sets)
    generator = Generator().manual_seed(request.random_seed)
    rows = method.choose(sets.forget.labels, generator)
    chosen = sets.forget if rows is None else sets.forget.take(rows)
    return Prepared(
        model=model,
        view=view,
        method=method.tuned(replace(facts, forget_size=len(chosen))),
        goal=goal,
        forget_classes=forget_classes,
        num_classes=num_classes,
        class_names=names,
        sets=Sets(chosen, sets.retain, places=taken(sets.places, rows), spare=sets.spare),
        validation=_parts(sets.validation, forget_classes),
        random_inputs=_differs_when_read_again(sets.forget),
        why=why,
        notes=(PROBABILITIES, *notes) if are_probabilities(logits) else notes,
    )


def _chosen(
    request: Request, model: nn.Module, facts: Facts, sets: Sets, example: Inputs
) -> tuple[Method, str]:
    """Let ``"auto"`` choose by what has been read so far."""
    from forgetkit.choosing import Situation, choose

    limit = request.seconds_allowed
    situation = Situation(
        facts=facts,
        multilabel=sets.forget.labels.ndim == 2,
        at_hand=request.at_hand,
        seconds=limit,
        sample_seconds=None if limit is None else _sample_seconds(request, model, example),
    )
    method, why = choose(situation)
    fixed = _head_fixed(request, model, method, example)
    if fixed is not None:
        return choose(replace(situation, head_fixed=fixed))
    return method, why


def _head_fixed(request: Request, model: nn.Module, method: Method, example: Inputs) -> str | None:
    """Return why a method that edits the head cannot do so here, or ``None``.

    Raises:
        CannotSplitModel: the head that the request names is none.
    """
    if method.card.edits != "head":
        return None
    try:
        view = _view(request, model, method, example)
        if view is not None:
            candidates = view.head_parameters()
            checks.check_untied(candidates, view.tied)
            checks.editable_parameters(candidates, method)
    except CannotSplitModel as error:
        if request.head_name is not None:
            raise
        return str(error)
    except ModelError as error:
        return str(error)
    return None


def _sample_seconds(request: Request, model: nn.Module, example: Inputs) -> float:
    """Return about how long a forward and backward pass over one sample takes, here and now.

    The backward counts for two forwards. A large batch, another device or half precision are
    faster than that.
    """
    samples = len(example if isinstance(example, Tensor) else next(iter(example.values())))
    seconds = []
    with torch.no_grad(), evaluating(model):
        for _ in range(3):
            start = time.perf_counter()
            output = model(example) if isinstance(example, Tensor) else model(**example)
            float(
                logits_of(output, request.output).sum()
            )  # waits for a device that computes by itself
            seconds.append(time.perf_counter() - start)
    return 3 * min(seconds) / samples


def _view(request: Request, model: nn.Module, method: Method, example: Inputs) -> ModelView | None:
    if method.card.edits != "head" and not method.card.features:
        return None
    head = request.head_name
    return adapt(
        model,
        example,
        head=head if head is None or isinstance(head, str) else list(head),
        output=request.output,
    )


def _parts(validation: SampleSet | None, forget_classes: tuple[int, ...]) -> dict[str, SampleSet]:
    """Split validation data into retained and forgotten classes; an empty part is left out."""
    if validation is None:
        return {}
    labels = validation.labels
    if labels.ndim == 2:
        lost = labels[:, list(forget_classes)].any(dim=1)
    else:
        lost = torch.isin(labels, torch.tensor(forget_classes, dtype=labels.dtype))
    chosen = {"validation_retain": ~lost, "validation_forget": lost}
    return {
        name: validation.take(rows.nonzero()[:, 0])
        for name, rows in chosen.items()
        if bool(rows.any())
    }


def _is_transformer(model: nn.Module) -> bool:
    """Return whether attention dominates: attention modules, and convolutions only to embed."""
    modules = list(model.modules())
    attention = sum("attention" in type(m).__name__.lower() for m in modules)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in modules)
    return attention > convolutions


def _differs_when_read_again(samples: SampleSet) -> bool:
    if repeats(samples):
        return False
    logger.warning(
        "the loader gives a different image each time a sample is read (random augmentation); "
        "features are extracted anew each epoch and what is computed per sample is approximate; "
        "use a deterministic transform for exact results"
    )
    return True
