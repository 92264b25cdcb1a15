"""The audit itself: read, collect once, run every metric that the level and the data allow."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from forgetkit.auditing import inputs
from forgetkit.auditing.evidence import (
    WRONG_LABELS,
    Evidence,
    Missing,
    NotApplicable,
    Role,
    Subject,
    collect,
)
from forgetkit.auditing.readings import are_numbers, broken_models
from forgetkit.auditing.record import Audit
from forgetkit.auditing.verdict import Circumstances, verdict
from forgetkit.data.loaders import Loader
from forgetkit.dryrun.outputs import OutputChoice
from forgetkit.engine.session import borrowed_randomness
from forgetkit.engine.surroundings import own_surroundings
from forgetkit.errors import BadHyperparameter, BadTarget, ModelError
from forgetkit.fingerprint import TensorPrint, digest
from forgetkit.goal import Classes, Goal, Instances
from forgetkit.metric import LEVELS, Cause, Finding, Metric, all_metrics, find_metric
from forgetkit.model_errors import in_one_sentence
from forgetkit.progress import progress
from forgetkit.types import SampleSet

logger = logging.getLogger("forgetkit")

Model: TypeAlias = nn.Module | str | Path
LIBRARIES = ("forgetkit", "torch", "numpy", "scipy", "scikit-learn", "torchmetrics")
RANK: dict[str, int] = {name: rank for rank, name in enumerate(LEVELS)}
PASSES = {"quick": 0, "standard": 20_000, "full": 200_000}
"""Rough number of sample forwards that one metric of a level makes, for the estimate alone."""
SECONDS = {"quick": 0.5, "standard": 1.0, "full": 2.0}
"""Rough time of one metric beside its forwards, for the estimate alone."""
MANY_CLASSES = 50
"""With more, fitting heads to features can take longer than all that the estimate counts."""

BLIND = "the original passes this check too, so that passing shows nothing"
"""What is said of a check that finds no difference from retraining where nothing was forgotten."""


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

        place_of(Path(report).parent, Path(report).name)  # before the work, not after it
    if goal is None:
        goal = Instances() if classes is None else Classes(classes)
    several: list[Model] = []
    if reference is not None:
        single = isinstance(reference, (nn.Module, str, Path, Mapping))
        several = [reference] if single else list(reference)  # type: ignore[list-item, arg-type]
    with own_surroundings():
        session = _Session(
            model=_module(model, "model"),
            original=None if original is None else _module(original, "original"),
            references=[_module(one, "reference") for one in several],
            given=inputs.Given(goal, forget, retain, test),
            level=level,
            metrics=_chosen(level, metrics),
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

            page = write_report(found.to_json(), Path(report).parent, session.evidence,
                                name=Path(report).name)  # fmt: skip
            say(f"wrote {page}")
    return found


@dataclass
class _Session:
    """One audit: what was asked, and what is known so far."""

    model: nn.Module
    original: nn.Module | None
    references: list[nn.Module]
    given: inputs.Given
    level: str
    metrics: list[Metric]
    device: torch.device
    seed: int
    head: str | Sequence[str] | None
    output: OutputChoice
    head_masked: bool
    untrained: bool
    say: Callable[[str], None]
    material: inputs.Material | None = None
    evidence: Evidence | None = None
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prints: dict[str, object] = field(default_factory=dict)
    changed: list[str] | None = None
    head_only: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    metric_seconds: dict[str, float] = field(default_factory=dict)
    estimated: float | None = None
    partial: bool = False
    blind: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    def run(self) -> Audit:
        """Do it; Ctrl-C at any moment leaves a record of what is known by then."""
        began = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            self._prepare()
            self._measure()
        except KeyboardInterrupt:
            self.partial = True
            self.say("interrupted: the record holds what was found so far")
        done = {finding.slug for finding in self.findings}
        for metric in self.metrics:
            if metric.card.slug not in done:
                self.findings.append(_not_run(metric, "interrupted", "the audit was interrupted"))
        return self._record(began)

    def _prepare(self) -> None:
        with self._clock("read"):
            own = self._copy(self.model)
            count = 1 + (self.original is not None) + len(self.references) + self.untrained
            self.material = inputs.read(
                own, self.given, self.device, self.seed, models=count, head=self.head
            )
        with self._clock("fingerprint"):
            self._fingerprint()
        models: list[tuple[Role, nn.Module]] = [("unlearned", own)]
        if self.original is not None:
            models.append(("original", self._copy(self.original)))
        models += [("retrained", self._copy(one)) for one in self.references]
        self._say_which_models_are_missing()
        if self.untrained and (twin := self._twin(own)) is not None:
            models.append(("untrained", twin))
        self._estimate(own, len(models))
        with self._clock("collect"):
            self._collect(models)

    def _copy(self, model: nn.Module) -> nn.Module:
        return inputs.copy_of(model, self.device, self.output)

    def _say_which_models_are_missing(self) -> None:
        if self.original is None:
            self.missing.append(
                "no original model: nothing shows that an attack works where there is something "
                "to find"
            )
        if not self.references:
            self.missing.append(
                "no model retrained without the samples: nothing can be judged to be as after "
                "retraining"
            )
        elif len(self.references) == 1:
            self.notes.append(
                "one retrained model: how much two of them differ by themselves is not known"
            )

    def _twin(self, own: nn.Module) -> nn.Module | None:
        try:
            twin, unknown = inputs.untrained_copy(own, self.seed)
        except Exception as error:  # the initialisers are the user's or a library's
            self.missing.append(f"no untrained twin: {type(error).__name__}: {error}")
            return None
        if unknown:
            self.notes.append(
                f"untrained twin: no initialiser is known for {', '.join(unknown[:5])}"
                f"{', ...' if len(unknown) > 5 else ''}; drawn from a normal distribution"
            )
        return twin

    def _fingerprint(self) -> None:
        prints = inputs.prints_of(self.model)
        self.prints["model"] = digest(prints)
        if self.original is not None:
            before = inputs.prints_of(self.original)
            self.prints["original"] = digest(before)
            self._compare(before, prints)
        self._fingerprint_references()
        sets = self._sets()
        if "forget" in sets:
            self.prints["forget set"] = inputs.set_digest(sets["forget"])

    def _fingerprint_references(self) -> None:
        """Keep the references that are models of their own; refuse what cannot be one.

        Raises:
            ModelError: one is the original, or another one, bit for bit.
        """
        found: dict[str, nn.Module] = {}
        for number, one in enumerate(self.references, 1):
            mark = digest(inputs.prints_of(one))
            same = ""
            if mark == self.prints.get("original"):
                same = "the original, which was trained on them"
            elif mark in found:
                same = "a reference that was given before"
            if same:
                raise ModelError(
                    "audit(reference=...): expected different models that were trained without "
                    f"the samples to forget, found that number {number} is bit for bit {same}; "
                    "leave it out or pass another one"
                )
            if mark == self.prints["model"]:
                self.notes.append(
                    f"reference {number} is the model under audit, bit for bit, and was left out: "
                    "held against itself, a model shows nothing"
                )
            else:
                found[mark] = one
        self.references = list(found.values())
        if found:
            self.prints["retrained"] = list(found)

    def _compare(self, before: Mapping[str, TensorPrint], after: Mapping[str, TensorPrint]) -> None:
        self.changed = inputs.changed_tensors(before, after)
        if self.changed is None:
            self.notes.append(
                "the original has other tensors than the model: what changed cannot be told"
            )

    def _sets(self) -> dict[str, SampleSet]:
        return {} if self.material is None else self.material.sets

    def _estimate(self, model: nn.Module, models: int) -> None:
        """Measure one batch, and say how long all of it will take."""
        samples = max(self._sets().values(), key=len)
        some = samples.take(torch.arange(min(samples.batch_size, len(samples))))
        collect(model, {"": some}, device=self.device)  # the first pass is slower than the rest
        start = time.perf_counter()
        collect(model, {"": some}, device=self.device)
        each = (time.perf_counter() - start) / len(some)
        total = sum(map(len, self._sets().values()))
        passes = models * total + sum(PASSES[metric.card.level] for metric in self.metrics)
        beside = sum(SECONDS[metric.card.level] for metric in self.metrics)
        self.estimated = each * passes + beside
        self.say(
            f"{len(self.metrics)} checks ({self.level}) on {models} models and {total} samples: "
            f"about {_spoken(self.estimated)}{self._not_estimated()}"
        )

    def _not_estimated(self) -> str:
        """Say what the estimate leaves out; how long a fit takes shows only while it is made."""
        classes = 0 if self.material is None else self.material.num_classes
        fits = any(metric.card.group == "audit" for metric in self.metrics)
        if classes <= MANY_CLASSES or not fits:
            return ""
        return f", and up to minutes more where new heads are fitted to {classes} classes"

    def _collect(self, models: Sequence[tuple[Role, nn.Module]]) -> None:
        if self.material is None:
            raise RuntimeError("the sets are read first")
        material, sets = self.material, self._sets()
        batches = sum(-(-len(samples) // samples.batch_size) for samples in sets.values())
        subjects: dict[Role, Subject] = {}
        retrained: list[Subject] = []
        with progress("collecting") as bar, borrowed_randomness(self.seed):
            bar.expect(batches * len(models))
            for role, model in models:
                must = role == "unlearned" and self.head is not None
                some = next(iter(sets.values()))
                view = inputs.view_of(model, some, self.device, self.head, must=must)
                outputs = collect(
                    model, sets, device=self.device, view=view,
                    unlabelled=material.unlabelled, tick=lambda _: bar.advance(),
                )  # fmt: skip
                width = next(iter(outputs.values())).logits.shape[1]
                if width != material.num_classes:
                    raise ModelError(
                        f"{role}: expected a model with {material.num_classes} outputs, as the "
                        f"audited one has, found {width}; pass models of the same task"
                    )
                subject = Subject(model, outputs, view)
                if role == "retrained":
                    retrained.append(subject)
                subjects.setdefault(role, subject)
        twin = subjects.get("untrained")
        if twin is not None and not all(map(are_numbers, twin.outputs.values())):
            del subjects["untrained"]
            self.missing.append("no untrained twin: it answers NaN or infinity")
        view = subjects["unlearned"].view
        if view is None:
            self.missing.append(
                "features: the model cannot be split into features and head, so nothing behind "
                "the outputs was examined; pass head=... to name the head"
            )
        elif self.changed is not None:
            self.head_only = inputs.only_in_head(self.changed, view)
        self.evidence = Evidence(
            subjects=subjects,
            sets=sets,
            goal=self.given.goal.kind,
            forget_classes=material.forget_classes,
            num_classes=material.num_classes,
            references=tuple(retrained),
            head_masked=self.head_masked,
            head_only=self.head_only,
            device=self.device,
            seed=self.seed,
            class_names=material.class_names,
            unlabelled=frozenset(material.unlabelled),
            head=self.head,
        )

    def _measure(self) -> None:
        if self.evidence is None:
            raise RuntimeError("the evidence is collected first")
        broken = broken_models(self.evidence)
        if broken:
            self.missing.append(f"all checks: {broken}; mend it or leave it out")
        with progress("auditing") as bar:
            bar.expect(len(self.metrics))
            for number, metric in enumerate(self.metrics, 1):
                self.say(f"{number}/{len(self.metrics)} {metric.card.title}")
                start = time.perf_counter()
                self.findings.append(_measured(metric, self.evidence, broken))
                self.findings[-1] = self._judged(self.findings[-1], metric)
                self.metric_seconds[metric.card.slug] = time.perf_counter() - start
                bar.advance()

    def _judged(self, found: Finding, metric: Metric) -> Finding:
        """Take back an ``as retrain`` that the original would get as well."""
        if found.verdict != "as retrain" or self.evidence is None:
            return found
        self.untried.append(found.slug)  # unless what follows ends
        if self.original is None:
            return found
        before = _measured(metric, self.evidence.of_original())
        if before.verdict != "not run":
            self.untried.remove(found.slug)
        if before.verdict == "not run":
            note = f"not tried on the original: {before.note}"
        elif before.verdict == "as retrain":
            self.blind.append(found.slug)
            found, note = replace(found, verdict="not decidable"), BLIND
        else:
            return found
        return replace(found, note="; ".join(filter(None, (note, found.note))))

    def _record(self, began: str) -> Audit:
        material = self.material
        names = None if material is None else material.class_names
        cards = {metric.card.slug: metric.card for metric in self.metrics}
        higher = [
            metric.card
            for metric in all_metrics()
            if metric.card.slug not in cards and RANK[metric.card.level] > RANK[self.level]
        ]
        models: dict[str, int] = {}
        if self.evidence is not None:
            models = dict.fromkeys(self.evidence.subjects, 1)
            if self.evidence.references:
                models["retrained"] = len(self.evidence.references)
        unchanged = self.changed is not None and not self.changed
        target = _target(self.given.goal, names, self._sets())
        sentences = verdict(
            self.findings,
            cards,
            Circumstances(
                target=target,
                head_only=self.head_only,
                unchanged=unchanged,
                head_masked=self.head_masked,
                has_reference=bool(self.references),
                partial=self.partial,
                level=self.level,
                beyond=tuple(card.title for card in higher),
                blind=tuple(self.blind),
                untried=tuple(self.untried),
            ),
        )
        return Audit(
            findings=tuple(self.findings),
            cards=cards,
            verdict=tuple(sentences),
            target=target,
            goal=self.given.goal.to_json(),
            level=self.level,
            forget_classes=() if material is None else material.forget_classes,
            num_classes=0 if material is None else material.num_classes,
            class_names=names,
            samples={name: len(samples) for name, samples in self._sets().items()},
            models=models,
            fingerprints=dict(self.prints),
            head_only=self.head_only,
            changed=self.changed,
            head_masked=self.head_masked,
            missing=[*([] if material is None else material.missing), *self.missing],
            notes=[*([] if material is None else material.notes), *self.notes],
            beyond=[card.slug for card in higher],
            seconds=dict(self.seconds),
            metric_seconds=dict(self.metric_seconds),
            estimated_seconds=self.estimated,
            seed=self.seed,
            device=str(self.device),
            versions=_versions(),
            created=began,
            partial=self.partial,
        )

    @contextmanager
    def _clock(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = time.perf_counter() - start


def _measured(metric: Metric, evidence: Evidence, broken: str = "") -> Finding:
    """Run one metric; whatever stops it becomes the reason why it was not run."""
    if broken:
        return _not_run(metric, "failed", f"needs finite predictions, but {broken}")
    try:
        with borrowed_randomness(evidence.seed):
            found = metric.measure(evidence)
    except Missing as reason:
        cause: Cause = "not applicable" if isinstance(reason, NotApplicable) else "missing"
        return _not_run(metric, cause, str(reason))
    except Exception as error:  # one broken check must not cost the others
        logger.debug("the check %s failed", metric.card.slug, exc_info=True)
        text = (str(error).strip().splitlines() or ["no message"])[0]
        return _not_run(metric, "failed", f"an error stopped it: {type(error).__name__}: {text}")
    if found.value is not None and math.isnan(found.value):
        note = f"its value is not a number; {found.note}".removesuffix("; ")
        return replace(found, value=None, verdict="not run", note=note)
    return found


def _not_run(metric: Metric, cause: Cause, note: str) -> Finding:
    return replace(metric.finding(None, verdict="not run", note=note), cause=cause)


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


def _target(goal: Goal, names: Sequence[str] | None, sets: Mapping[str, SampleSet]) -> str:
    """Say what was to be forgotten so that it fits into a sentence."""
    if not isinstance(goal, Classes) and "forget" in sets:
        count = len(sets["forget"])
        samples = "the one sample of the forget set" if count == 1 else f"{count} samples"
        return f"the wrong labels of {samples}" if goal.kind in WRONG_LABELS else samples
    words = goal.describe(names)
    single = isinstance(goal, Classes) and len(goal.classes) == 1
    return words.replace("classes ", "class ", 1) if single else words


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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional, or run from a checkout
    return found


def _spoken(seconds: float) -> str:
    return f"{max(round(seconds), 1)} s" if seconds < 120 else f"{seconds / 60:.0f} min"
