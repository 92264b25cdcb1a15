"""The call of an audit: what was asked for is checked, then the session does it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from forgetkit.auditing.inputs import Given
from forgetkit.auditing.record import Audit
from forgetkit.auditing.session import Session
from forgetkit.data.loaders import Loader
from forgetkit.dryrun.outputs import OutputChoice
from forgetkit.engine.surroundings import own_surroundings
from forgetkit.errors import BadHyperparameter, BadTarget, ModelError
from forgetkit.goal import Classes, Goal, Instances
from forgetkit.metric import LEVELS, Metric, MetricCard, all_metrics, find_metric
from forgetkit.model_errors import in_one_sentence
from forgetkit.whole_files import path_of

logger = logging.getLogger("forgetkit")

Model: TypeAlias = nn.Module | str | Path
RANK: dict[str, int] = {name: rank for rank, name in enumerate(LEVELS)}


def audit(
    model: Model,
    *,
    forget: Loader | None = None,
    retain: Loader | None = None,
    test: Loader | None = None,
    classes: Sequence[int | str] | None = None,
    goal: Goal | None = None,
    original: Model | None = None,
    reference: Model | Sequence[Model] | None = None,
    level: str = "quick",
    metrics: Sequence[str | Metric] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    head: str | Sequence[str] | None = None,
    output: OutputChoice = None,
    head_masked: bool = False,
    untrained: bool = True,
    report: str | Path | None = None,
    history: Sequence[Mapping[str, float]] = (),
    times: Mapping[str, float] | None = None,
    say: Callable[[str], None] = logger.info,
) -> Audit:
    """Find out what a model still knows, and say what could not be tested.

    Every metric, attack and audit that the level and the data allow is run on copies of the
    models. What lacks something is recorded as not run with the reason; an error in one does not
    stop the others; Ctrl-C ends the audit with what it has found so far.

    Args:
        model: the model under audit, or where to load it from.
        forget: training data to forget. With ``classes`` it may hold the whole training set; the
            rest then serves as ``retain``. Without, everything in it was to be forgotten.
        retain: training data to keep, when ``forget`` does not hold it. Of more samples than there
            is memory for what all models answer to them (4 GiB), as many are drawn by the seed, and
            a note says so.
        test: data that nothing was trained on, of all classes.
        classes: the forgotten classes, when whole classes were to be forgotten.
        goal: another request, as an object of ``forgetkit.goal``; instead of ``classes``.
        original: the model before it forgot.
        reference: one or several models trained without the samples to forget. One that is the
            model under audit, bit for bit, is left out with a note.
        level: ``"quick"``, ``"standard"`` or ``"full"``.
        metrics: names or objects to run instead of all of the level.
        device: where to compute; the default is a CUDA device, else the CPU.
        seed: of every random choice.
        head: dotted path(s) of the head, when detection must be overruled.
        output: key, index or function that leads to the logits, where the models return several
            tensors that could be.
        head_masked: whether output rows were masked, so that forget accuracy is 0 by construction.
        untrained: whether an untrained twin of the model serves as a control.
        report: an .html file to write the audit to, with pictures.
        history: of the unlearning run, one record an epoch, for the report.
        times: of the unlearning run: seconds by phase, and as ``"unlearning"`` of all of it.
        say: called with one line about what is being done.

    Returns:
        The record, partial after Ctrl-C.

    Raises:
        BadHyperparameter: an unknown level, metric, device or seed.
        BadTarget: the goal does not fit, or both ``goal`` and ``classes`` were given.
        CannotSplitModel: ``head`` is no head of the model under audit.
        DataError: nothing to forget was given, or data cannot be used.
        ModelError: a model cannot be used, the models do not fit together, or a reference is the
            original or another reference, bit for bit.
    """
    if level not in LEVELS:
        raise BadHyperparameter(
            f"audit(level={level!r}): expected one of {', '.join(LEVELS)}, found {level!r}; "
            '"quick" fits no more than probes on extracted features'
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise BadHyperparameter(
            f"audit(seed={seed!r}): expected an integer from 0 to 2^32 - 1, found {seed!r}; any "
            "such number will do"
        )
    if goal is not None and classes is not None:
        raise BadTarget(
            "audit(classes=..., goal=...): expected one of the two, found both; leave out one"
        )
    if goal is not None and not isinstance(goal, Goal):
        raise BadTarget(
            f"audit(goal={goal!r}): expected an object of forgetkit.goal, found "
            f"{type(goal).__name__}; for whole classes pass classes=[3]"
        )
    if report is not None:
        from forgetkit.report.page import place_of

        page = path_of(report, "report")
        place_of(page.parent, page.name)  # before the work, not after it
    if goal is None:
        goal = Instances() if classes is None else Classes(classes)
    several: list[Model] = []
    if reference is not None:
        single = isinstance(reference, (nn.Module, str, Path, Mapping))
        if not single and not isinstance(reference, Iterable):
            _module(reference, "reference")
        several = [reference] if single else list(reference)  # type: ignore[list-item, arg-type]
    with own_surroundings():
        chosen = _chosen(level, metrics)
        session = Session(
            model=_module(model, "model"),
            original=None if original is None else _module(original, "original"),
            references=[_module(one, "reference") for one in several],
            given=Given(goal, forget, retain, test),
            level=level,
            metrics=chosen,
            beyond=_beyond(level, chosen),
            device=_device(device),
            seed=seed,
            head=head,
            output=output,
            head_masked=head_masked,
            untrained=untrained,
            say=say,
        )
        with in_one_sentence("audit()"):
            measured = session.run()
        found = replace(measured, history=list(history), times=dict(times or {}))
        if report is not None:
            from forgetkit.report import write_report

            written = write_report(found.to_json(), page.parent, session.evidence, name=page.name)
            say(f"wrote {written}")
    return found


def _chosen(level: str, metrics: Sequence[str | Metric] | None) -> list[Metric]:
    if metrics is None:
        return [one() for one in all_metrics() if RANK[one.card.level] <= RANK[level]]
    if isinstance(metrics, (str, Metric)):
        raise BadHyperparameter(
            f"audit(metrics={metrics!r}): expected a list of names or metrics, found a single one; "
            f"write metrics=[{metrics!r}]"
        )
    found = [one if isinstance(one, Metric) else find_metric(one)() for one in metrics]
    slugs = [metric.card.slug for metric in found]
    if len(set(slugs)) < len(slugs) or not found:
        raise BadHyperparameter(
            f"audit(metrics=...): expected names of metrics, each once, found "
            f"{', '.join(slugs) or 'none'}; leave it out to run all of the level"
        )
    return found


def _beyond(level: str, chosen: Sequence[Metric]) -> tuple[MetricCard, ...]:
    """Return the cards of what higher levels would have run."""
    known = {metric.card.slug for metric in chosen}
    cards = [metric.card for metric in all_metrics()]
    return tuple(c for c in cards if c.slug not in known and RANK[c.level] > RANK[level])


def _module(model: object, name: str) -> nn.Module:
    if isinstance(model, (str, Path)):
        from forgetkit.loading import load_model

        return load_model(model)
    if isinstance(model, Mapping):
        raise ModelError(
            f"audit({name}={type(model).__name__}): expected a torch.nn.Module, found weights by "
            "name; load them into a copy: copy = copy.deepcopy(model), copy.load_state_dict(...)"
        )
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"audit({name}={type(model).__name__}): expected a torch.nn.Module or a string that "
            f"names one, found {type(model).__name__}; pass the model itself"
        )
    return model


def _device(device: torch.device | str | None) -> torch.device:
    from forgetkit.engine.place import choose_place

    return choose_place(device, None, None).device
