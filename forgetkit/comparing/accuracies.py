"""Accuracies of a model on what a goal makes of training and test data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetkit.adapting import logits_of, unwrap, width_of
from forgetkit.data.loaders import Loader
from forgetkit.data.names import class_names
from forgetkit.data.randomness import random_state_kept
from forgetkit.data.sources import read_all
from forgetkit.data.split import split
from forgetkit.engine.modes import evaluating
from forgetkit.engine.peeking import peeked
from forgetkit.engine.place import moved_inputs
from forgetkit.errors import DataError
from forgetkit.goal import Classes, Goal, resolve_classes
from forgetkit.losses import predictions, unlearning_score
from forgetkit.types import Inputs, SampleSet


@dataclass(frozen=True)
class Ground:
    """The samples that one goal is judged on.

    Args:
        goal: what to forget, class names replaced by indices.
        target: the goal in words.
        sets: samples by column: D_r, D_f, D_tr, D_tf; what the data do not hold is left out.
    """

    goal: Goal
    target: str
    sets: dict[str, SampleSet]

    def digest(self) -> str:
        """Return one SHA-256 of labels and positions; pixels are not read."""
        return _digest(self.sets)

    def accuracies(self, model: nn.Module) -> dict[str, float]:
        """Return the accuracy in percent on each set; the model's mode is given back."""
        return {name: 100.0 * accuracy_on(model, samples) for name, samples in self.sets.items()}


def ground_of(
    model: nn.Module,
    goal: Goal,
    loader: Loader,
    *,
    retain: Loader | None = None,
    test: Loader | None = None,
) -> Ground:
    """Cut training and test data by a goal.

    Args:
        model: to count classes with.
        goal: what to forget.
        loader: as for ``Request.run``.
        retain: data to keep, when ``loader`` does not hold it.
        test: samples that nothing was trained on; for a goal other than classes all of them
            count as D_tr.

    Raises:
        BadTarget: the goal does not fit the data.
        DataError: a loader cannot be read twice, or the labels are multi-label.
    """
    for name, given in (("loader", loader), ("retain", retain), ("test", test)):
        _refuse_iterator(name, given)
    bare = unwrap(model)
    names = class_names(bare, loader)
    loader, example = peeked(loader)
    width = _width(bare, example)
    classes: tuple[int, ...] = ()
    if isinstance(goal, Classes):
        classes = resolve_classes(goal, width, names)
        goal = Classes(classes)
    cut = split(
        loader, goal, num_classes=width, forget_classes=classes, retain=retain, validate=test
    )
    if cut.forget.labels.ndim != 1:
        raise DataError(
            "loader: expected one class a sample, found several labels a sample; these scores are "
            "defined for single-label classification, use forgetkit.audit instead"
        )
    found = {"D_r": cut.retain, "D_f": cut.forget}
    if cut.validation is not None:
        gone = torch.isin(cut.validation.labels, torch.tensor(classes, dtype=torch.int64))
        found["D_tr"] = cut.validation.take((~gone).nonzero()[:, 0])
        found["D_tf"] = cut.validation.take(gone.nonzero()[:, 0])
    sets = {name: samples for name, samples in found.items() if samples is not None}
    return Ground(
        goal, goal.describe(names), {name: part for name, part in sets.items() if len(part)}
    )


def validation_digest(model: nn.Module, validate: Loader) -> str:
    """Return one SHA-256 of the labels and positions of validation data.

    Args:
        model: to count classes with.
        validate: data that methods may stop on.

    Raises:
        DataError: ``validate`` cannot be read, or not twice.
    """
    _refuse_iterator("validate", validate)
    with random_state_kept():
        validate, example = peeked(validate, "validate")
        return _digest({"validate": read_all(validate, _width(unwrap(model), example), "validate")})


def score_of(found: dict[str, float]) -> float | None:
    """Return US from test accuracies in percent, or ``None`` where one of the two is missing."""
    if "D_tr" not in found or "D_tf" not in found:
        return None
    return unlearning_score(found["D_tr"] / 100, found["D_tf"] / 100)


@torch.no_grad()
def accuracy_on(model: nn.Module, samples: SampleSet) -> float:
    """Return the share of right predictions, in [0, 1]."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    right = 0
    with random_state_kept(), evaluating(model):
        for batch in samples.batches():
            inputs = moved_inputs(batch.inputs, device, dtype)
            output = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
            right += int((predictions(logits_of(output)).cpu() == batch.labels.cpu()).sum())
    return right / len(samples)


def _digest(sets: Mapping[str, SampleSet]) -> str:
    listed = [
        (name, samples.positions.tolist(), samples.labels.tolist())
        for name, samples in sorted(sets.items())
    ]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _refuse_iterator(name: str, given: Loader | None) -> None:
    if given is not None and getattr(given, "__next__", None) is not None:
        raise DataError(
            f"{name}: expected a loader that can be read again for every run, found an "
            f"iterator of type {type(given).__name__}; pass the DataLoader, the data set or a "
            "list of batches"
        )


def _width(model: nn.Module, example: Inputs) -> int:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        example = moved_inputs(example, parameter.device, parameter.dtype)
    return width_of(model, example)
