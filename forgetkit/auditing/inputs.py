"""From models and loaders to what an audit looks at: sets, copies of the models, fingerprints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Generator, Tensor, nn

from forgetkit.adapting import adapt, unwrap, width_of
from forgetkit.auditing.evidence import MEANING
from forgetkit.auditing.unlabelled import with_placeholders
from forgetkit.copying import independent_copy
from forgetkit.data.batches import rows_of
from forgetkit.data.described import described
from forgetkit.data.loaders import Loader
from forgetkit.data.names import class_names
from forgetkit.data.randomness import random_state_kept
from forgetkit.data.sets import StoredSet
from forgetkit.data.sources import read_all
from forgetkit.data.split import split
from forgetkit.dryrun.outputs import OutputChoice, logits_of
from forgetkit.engine.checks import check_model
from forgetkit.engine.modes import evaluating, set_eval
from forgetkit.engine.peeking import peeked
from forgetkit.engine.place import moved_inputs
from forgetkit.engine.session import borrowed_randomness
from forgetkit.errors import CannotSplitModel, DataError, ModelError
from forgetkit.fingerprint import (
    TensorPrint,
    model_prints,
    model_tensors,
    plain_names,
)
from forgetkit.fresh import reset_weights
from forgetkit.goal import Classes, Goal, Instances, resolve_classes
from forgetkit.types import Inputs, SampleSet
from forgetkit.view import ModelView

MEMORY = 1 << 30
"""Bytes of samples that are kept in memory, so that every model sees the same tensors."""
OUTPUTS = 4 << 30
"""Bytes of logits and features of the samples to keep, of all models; a fixed number, so that every
machine looks at the same samples."""


@dataclass(frozen=True)
class Given:
    """What an audit may read.

    Args:
        goal: what was asked for.
        forget: the training data, or the samples to forget alone.
        retain: data to keep, when ``forget`` does not hold it.
        test: samples that nothing was trained on.
    """

    goal: Goal
    forget: Loader | None = None
    retain: Loader | None = None
    test: Loader | None = None


@dataclass
class Material:
    """The sets of an audit, read and cut.

    Attributes:
        sets: by split name; what was not given is absent.
        forget_classes: forgotten class indices; for other goals those of the forget samples.
        num_classes: width of the logits.
        class_names: by index, or ``None``.
        missing: what was not given, and what follows from that; one sentence each.
        notes: what a reader of the record should know about the sets.
        unlabelled: splits that came without labels.
    """

    sets: dict[str, SampleSet]
    forget_classes: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unlabelled: set[str] = field(default_factory=set)


def copy_of(model: nn.Module, device: torch.device, output: OutputChoice = None) -> nn.Module:
    """Return the model without wrappers, copied to a device, in eval mode, without gradients.

    Args:
        model: left as it was.
        device: where the copy computes.
        output: key, index or function that leads to the logits in what the model returns; the
            copy then returns those alone.

    Raises:
        ModelError: the weights cannot be read, or the model cannot be copied.
    """
    bare = unwrap(model)
    check_model(bare)
    try:
        twin = independent_copy(bare).to(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"audit(model): expected a model that copy.deepcopy can copy, found "
            f"{type(bare).__name__}: {error}; detach tensors that hang on a graph, or load the "
            "model from its file"
        ) from error
    for parameter in twin.parameters():
        parameter.grad = None
    if output is not None:
        twin.register_forward_hook(partial(_logits_alone, output))
    return set_eval(twin)


def _logits_alone(choice: OutputChoice, _: nn.Module, __: object, output: object) -> Tensor:
    return logits_of(output, choice)


def untrained_copy(model: nn.Module, seed: int) -> tuple[nn.Module, list[str]]:
    """Return an untrained copy, and the names of tensors that no initialiser is known for."""
    twin = independent_copy(model)
    with borrowed_randomness(seed):
        unknown = reset_weights(twin)
    return set_eval(twin), unknown


def read(
    model: nn.Module,
    given: Given,
    device: torch.device,
    seed: int,
    *,
    models: int | None = None,
    head: str | Sequence[str] | None = None,
) -> Material:
    """Read and cut every set; loaders and random states are left as they were.

    Args:
        model: a copy on ``device``, to count classes with.
        given: goal and loaders.
        device: where the model is.
        seed: of random augmentation, when the loaders have any, and of the samples to keep.
        models: how many models will answer; more samples to keep than there is memory for their
            answers are cut at random to those. ``None`` when none will answer, and for all samples.
        head: dotted path(s) of the head, when detection must be overruled.

    Raises:
        BadTarget: the goal does not fit the data.
        DataError: nothing was given, or the data cannot be used.
    """
    first = next((it for it in (given.forget, given.test, given.retain) if it is not None), None)
    if first is None or (given.forget is None and not isinstance(given.goal, Classes)):
        raise DataError(
            "audit(forget=...): expected the samples to forget, found none; pass a loader that "
            "holds them (with classes=[...] it may hold the whole training set), or classes=[...] "
            "and a test set for a shorter audit"
        )
    names = class_names(model, first)
    told = _sources(given)  # asked before loaders are wrapped
    given, unlabelled = _labelled(given)
    first = next(it for it in (given.forget, given.test, given.retain) if it is not None)
    looked_at, example = peeked(first)
    if given.forget is not None:
        given = Given(given.goal, looked_at, given.retain, given.test)
    elif given.test is not None:
        given = Given(given.goal, None, given.retain, looked_at)
    else:
        given = Given(given.goal, None, looked_at, None)
    width = _width(model, example, device)
    classes = resolve_classes(given.goal, width, names) if isinstance(given.goal, Classes) else ()
    with random_state_kept():
        forget, retain, test = _cut(given, width, classes, unlabelled)
    classes = classes or (() if "forget" in unlabelled else _present(forget))
    material = Material({}, classes, width, names, unlabelled=unlabelled)
    if models is not None and retain is not None:
        with borrowed_randomness(seed):
            numbers = width + _feature_size(model, retain, device, head)
        retain = _affordable(retain, 4 * models * numbers, material, seed)
    parts: dict[str, SampleSet | None] = {"forget": forget, "retain": retain}
    parts |= _test_parts(test, classes)
    with borrowed_randomness(seed):
        _keep(material, parts)
    if not material.sets:
        raise DataError(
            "audit(...): expected samples to look at, found none beside those of the forgotten "
            "classes; pass a forget set or a test set"
        )
    _say_what_is_missing(material, given, test)
    _say_the_sources(material, told)
    return material


def _sources(given: Given) -> dict[str, str]:
    """Return by split name where its samples come from."""
    retain = given.forget if given.retain is None else given.retain
    loaders = {"forget": given.forget, "retain": retain}
    loaders |= dict.fromkeys(("test_forget", "test_retain"), given.test)
    return {name: described(loader) for name, loader in loaders.items() if loader is not None}


def _say_the_sources(material: Material, told: Mapping[str, str]) -> None:
    """Note where each set comes from: a reader cannot tell a test set by its size."""
    sets: dict[str, list[str]] = {}
    for name in material.sets:
        sets.setdefault(told[name], []).append(MEANING[name])
    words = [f"{' and '.join(names)}: {source}" for source, names in sets.items()]
    material.notes.append(f"sources: {'; '.join(words)}")


def _affordable(retain: SampleSet, each: int, material: Material, seed: int) -> SampleSet:
    """Cut samples whose outputs take ``each`` bytes to those that find room; a note says so."""
    most = max(OUTPUTS // each, 1)
    if len(retain) <= most:
        return retain
    material.notes.append(
        f"retain: {most} of {len(retain)} samples are looked at, drawn by the seed: what the "
        f"models answer to all of them would take {len(retain) * each / 2**30:.0f} GiB of memory"
    )
    rows = torch.randperm(len(retain), generator=Generator().manual_seed(seed))[:most]
    return retain.take(rows.sort().values)


def _feature_size(
    model: nn.Module,
    samples: SampleSet,
    device: torch.device,
    head: str | Sequence[str] | None,
) -> int:
    """Return how many numbers the features of a sample are; 0 where there are none."""
    view = view_of(model, samples, device, head)
    if view is None:
        return 0
    with torch.no_grad(), evaluating(model):
        features = view.features(_two_of(samples, model, device))
    return features[0].numel()


def _two_of(samples: SampleSet, model: nn.Module, device: torch.device) -> Inputs:
    """Return two samples where the model is, for some models take no batch of one."""
    batch = next(iter(samples.take(torch.arange(min(2, len(samples)))).batches(2)))
    return moved_inputs(rows_of(batch.inputs, slice(0, 2)), device, floating_type(model))


def _labelled(given: Given) -> tuple[Given, set[str]]:
    """Give every sample a label where a loader has none; leave such a test set out.

    Raises:
        DataError: nothing is left to look at.
    """
    unlabelled: set[str] = set()
    loaders: dict[str, Loader | None] = {}
    for name in ("forget", "retain", "test"):
        loader: Loader | None = getattr(given, name)
        if loader is not None:
            loader, has_labels = with_placeholders(loader, name)
            if not has_labels:
                unlabelled.add(name)
        loaders[name] = loader
    if "test" in unlabelled:
        loaders["test"] = None
    if not any(loader is not None for loader in loaders.values()):
        raise DataError(
            "audit(test=...): expected labels, by which a test set is cut into forgotten and other "
            "classes, found none; return labels with every sample, or pass the samples to forget"
        )
    return Given(given.goal, loaders["forget"], loaders["retain"], loaders["test"]), unlabelled


def _cut(
    given: Given, width: int, classes: tuple[int, ...], unlabelled: AbstractSet[str]
) -> tuple[SampleSet | None, SampleSet | None, SampleSet | None]:
    if given.forget is not None and not unlabelled & {"forget", "retain"}:
        sets = split(
            given.forget, given.goal, num_classes=width, forget_classes=classes,
            retain=given.retain, validate=given.test,
        )  # fmt: skip
        return sets.forget, sets.retain, sets.validation
    forget: SampleSet | None = None
    retain: SampleSet | None = None
    if given.forget is not None:
        whole = "forget" in unlabelled and isinstance(given.goal, Classes)
        goal = Instances() if whole else given.goal  # no label tells which samples to take
        sets = split(given.forget, goal, num_classes=width, forget_classes=classes)
        forget, retain = sets.forget, sets.retain
    if given.retain is not None:
        retain = read_all(given.retain, width, "retain")
        if classes and "retain" not in unlabelled:
            retain = _rows(retain, ~_has_class(retain.labels, classes))
    return forget, retain, None if given.test is None else read_all(given.test, width, "test")


def _width(model: nn.Module, example: Inputs, device: torch.device) -> int:
    return width_of(model, moved_inputs(example, device, floating_type(model)))


def floating_type(model: nn.Module) -> torch.dtype | None:
    """Return the type of the model's weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _has_class(labels: Tensor, classes: Sequence[int]) -> Tensor:
    if labels.ndim == 2:
        return labels[:, list(classes)].bool().any(dim=1)
    return torch.isin(labels, torch.tensor(list(classes), dtype=labels.dtype))


def _present(samples: SampleSet | None) -> tuple[int, ...]:
    if samples is None:
        return ()
    labels = samples.labels
    if labels.ndim == 2:
        return tuple(labels.bool().any(dim=0).nonzero()[:, 0].tolist())
    return tuple(torch.unique(labels).tolist())


def _rows(samples: SampleSet, mask: Tensor) -> SampleSet | None:
    rows = mask.nonzero()[:, 0]
    return samples.take(rows) if len(rows) else None


def _test_parts(test: SampleSet | None, classes: Sequence[int]) -> dict[str, SampleSet | None]:
    if test is None:
        return {"test_forget": None, "test_retain": None}
    lost = _has_class(test.labels, classes)
    return {"test_forget": _rows(test, lost), "test_retain": _rows(test, ~lost)}


def _keep(material: Material, parts: Mapping[str, SampleSet | None]) -> None:
    """Put the sets in memory as long as there is room, so that all models see equal tensors."""
    room, large = MEMORY, []
    for name, samples in parts.items():
        if samples is None or len(samples) == 0:
            continue
        size = _bytes(samples)
        if size > room:
            material.sets[name] = samples
            large.append(name)
            continue
        room -= size
        material.sets[name] = samples if isinstance(samples, StoredSet) else in_memory(samples)
    if large:
        material.notes.append(
            f"{', '.join(large)}: read anew for every model; without random augmentation that "
            "makes no difference"
        )


def _bytes(samples: SampleSet) -> int:
    if isinstance(samples, StoredSet):
        return 0
    batch = next(iter(samples.take(torch.arange(1)).batches(1)))
    tensors = [batch.inputs] if isinstance(batch.inputs, Tensor) else batch.inputs.values()
    return len(samples) * sum(tensor.nbytes for tensor in tensors)


def in_memory(samples: SampleSet) -> StoredSet:
    """Return the same samples as tensors, read once in their order."""
    parts = [batch.inputs for batch in samples.batches()]
    inputs: Inputs
    if isinstance(parts[0], Tensor):
        inputs = torch.cat([part for part in parts if isinstance(part, Tensor)])
    else:
        named = [part for part in parts if not isinstance(part, Tensor)]
        inputs = {key: torch.cat([part[key] for part in named]) for key in named[0]}
    return StoredSet(
        inputs, samples.labels, samples.positions, samples.batch_size,
        new_labels=samples.new_labels,
    )  # fmt: skip


def _say_what_is_missing(material: Material, given: Given, test: SampleSet | None) -> None:
    sets, missing = material.sets, material.missing
    if "forget" not in sets:
        missing.append("no samples to forget: membership, probes and relearning need them")
    elif len(sets["forget"]) == 1:
        missing.append("one sample to forget: no interval or attack says much about one sample")
    if "retain" not in sets:
        missing.append("no training samples to keep: damage to them and probes were not tested")
    for name in sorted(material.unlabelled & sets.keys()):
        missing.append(
            f"no labels of {MEANING[name]}: accuracies, losses and attacks on them were not tested"
        )
    if "forget" in material.unlabelled and isinstance(given.goal, Classes):
        material.notes.append(
            "the samples to forget came without labels: all that their loader holds are taken"
        )
    if "test" in material.unlabelled:
        missing.append(
            "no labels in the test set: it cannot be cut into forgotten and other classes, and was "
            "not used"
        )
    elif test is None:
        missing.append("no test set: nothing shows how the model treats samples it never saw")
    else:
        if "test_forget" not in sets:
            missing.append("no test samples of the forgotten classes: membership needs them")
        if "test_retain" not in sets:
            missing.append("no test samples of other classes: damage to them was not tested")
    labelled = [samples for name, samples in sets.items() if name not in material.unlabelled]
    held = {label for samples in labelled for label in _present(samples)}
    if len(held) == 1:
        missing.append("samples of a single class: there is no other class to compare it with")
    forget, retain = sets.get("forget"), sets.get("retain")
    if isinstance(given.goal, Classes) or forget is None or retain is None:
        return
    if material.unlabelled:
        return
    if given.goal.kind == "instances" and not set(_present(forget)) & set(_present(retain)):
        material.notes.append(
            "the samples to keep hold none of the forget samples' classes: if whole classes were "
            "to be forgotten, pass classes=[...]"
        )


def view_of(
    model: nn.Module,
    samples: SampleSet,
    device: torch.device,
    head: str | Sequence[str] | None,
    *,
    must: bool = False,
) -> ModelView | None:
    """Return features and head of a model, or ``None`` when it cannot be split.

    Raises:
        CannotSplitModel: it cannot be split and ``must`` be.
    """
    inputs = _two_of(samples, model, device)
    try:
        return adapt(model, inputs, head=head)
    except CannotSplitModel:
        if must:
            raise
        return None


def prints_of(model: nn.Module) -> dict[str, TensorPrint]:
    """Return the fingerprint of every tensor by its name without wrappers' marks."""
    return model_prints(unwrap(model))


def changed_tensors(
    before: Mapping[str, TensorPrint], after: Mapping[str, TensorPrint]
) -> list[str] | None:
    """Return the names of tensors that differ; ``None`` when these are not states of one model."""
    if before.keys() != after.keys():
        return None
    if any(before[name].shape != after[name].shape for name in before):
        return None
    return [name for name in before if before[name] != after[name]]


def only_in_head(changed: Iterable[str], view: ModelView) -> bool:
    """Return whether all of these tensors belong to the head."""
    plain = plain_names(model_tensors(view.model))
    own = {plain[name] for name in view.head_parameters() if name in plain}
    return all(name in own for name in changed)
