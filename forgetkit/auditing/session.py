"""The audit itself: read, collect once, run every metric that was chosen, write the record."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import torch
from torch import nn

from forgetkit.auditing import inputs
from forgetkit.auditing.attempt import attempt, not_run
from forgetkit.auditing.estimate import expected_seconds, in_words
from forgetkit.auditing.evidence import WRONG_LABELS, Evidence, Role, Subject, collect
from forgetkit.auditing.readings import are_numbers, broken_models
from forgetkit.auditing.record import Audit
from forgetkit.auditing.verdict import Circumstances, verdict
from forgetkit.data.set_digest import set_digest
from forgetkit.dryrun.outputs import OutputChoice
from forgetkit.engine.session import borrowed_randomness
from forgetkit.errors import ModelError
from forgetkit.fingerprint import TensorPrint, digest
from forgetkit.goal import Classes, Goal
from forgetkit.metric import Finding, Metric, MetricCard
from forgetkit.progress import progress
from forgetkit.types import SampleSet

LIBRARIES = ("forgetkit", "torch", "numpy", "scipy", "scikit-learn", "torchmetrics")

BLIND = "the original passes this check too, so that passing shows nothing"
"""What is said of a check that finds no difference from retraining where nothing was forgotten."""

BEYOND = "the original, which forgot nothing, is over-forgotten by this check, too"
"""What is said of a check that finds more forgotten than by retraining in any case."""


@dataclass
class Session:
    """One audit: what was asked, and what is known so far."""

    model: nn.Module
    original: nn.Module | None
    references: list[nn.Module]
    given: inputs.Given
    level: str
    metrics: list[Metric]
    beyond: tuple[MetricCard, ...]
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
                self.findings.append(not_run(metric, "interrupted", "the audit was interrupted"))
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
            self.prints["forget set"] = set_digest(sets["forget"])

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
        """Say how long all of it will take."""
        sets = self._sets()
        self.estimated = expected_seconds(model, models, sets, self.metrics, self.device)
        classes = 0 if self.material is None else self.material.num_classes
        self.say(
            f"{len(self.metrics)} checks ({self.level}) on {models} models and "
            f"{sum(map(len, sets.values()))} samples: "
            f"{in_words(self.estimated, self.metrics, classes)}"
        )

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
                self.findings.append(attempt(metric, self.evidence, broken))
                self.findings[-1] = self._judged(self.findings[-1], metric)
                self.metric_seconds[metric.card.slug] = time.perf_counter() - start
                bar.advance()

    def _judged(self, found: Finding, metric: Metric) -> Finding:
        """Take back a verdict that the original, which forgot nothing, would get as well."""
        if found.verdict == "over-forgotten":
            return self._held_against_the_original(found, metric)
        if found.verdict != "as retrain" or self.evidence is None:
            return found
        self.untried.append(found.slug)  # unless what follows ends
        if self.original is None:
            return found
        before = attempt(metric, self.evidence.of_original())
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

    def _held_against_the_original(self, found: Finding, metric: Metric) -> Finding:
        """Take back ``over-forgotten`` where it is said of a model that forgot nothing, too."""
        if self.original is None or self.evidence is None:
            return found
        if attempt(metric, self.evidence.of_original()).verdict != "over-forgotten":
            return found
        note = "; ".join(filter(None, (BEYOND, found.note)))
        return replace(found, verdict="not decidable", note=note)

    def _record(self, began: str) -> Audit:
        material = self.material
        names = None if material is None else material.class_names
        cards = {metric.card.slug: metric.card for metric in self.metrics}
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
                beyond=tuple(card.title for card in self.beyond),
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
            beyond=[card.slug for card in self.beyond],
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


def _target(goal: Goal, names: Sequence[str] | None, sets: Mapping[str, SampleSet]) -> str:
    """Say what was to be forgotten so that it fits into a sentence."""
    if not isinstance(goal, Classes) and "forget" in sets:
        count = len(sets["forget"])
        samples = "the one sample of the forget set" if count == 1 else f"{count} samples"
        return f"the wrong labels of {samples}" if goal.kind in WRONG_LABELS else samples
    words = goal.describe(names)
    single = isinstance(goal, Classes) and len(goal.classes) == 1
    return words.replace("classes ", "class ", 1) if single else words


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional, or run from a checkout
    return found
