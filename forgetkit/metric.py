"""The shape of a metric, an attack or an audit, and the registry that finds one by name."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, TypeVar

from forgetkit import fields
from forgetkit.errors import BadHyperparameter, UnknownMethod

if TYPE_CHECKING:
    from forgetkit.auditing.evidence import Evidence

Group: TypeAlias = Literal["accuracy", "score", "distribution", "representation", "attack", "audit"]
Level: TypeAlias = Literal["quick", "standard", "full"]
Verdict: TypeAlias = Literal[
    "as retrain", "residual", "over-forgotten", "not decidable", "not run", "no verdict"
]
Cause: TypeAlias = Literal["", "missing", "not applicable", "failed", "interrupted"]
"""Why a check was not run: it lacks something, does not fit the request, broke, or was cut off."""
Reads: TypeAlias = Literal["answers", "features", "weights", "disturbed"]
LEVELS: tuple[Level, ...] = ("quick", "standard", "full")
OUTPUT_GROUPS: tuple[Group, ...] = ("accuracy", "score", "distribution", "attack")


@dataclass(frozen=True)
class MetricCard:
    """What a metric is, for the audit, the tests, the report and the docs alike.

    Args:
        slug: registered name, lower case with underscores.
        title: the name in the literature.
        group: part of the report that it belongs to.
        level: the smallest level of an audit that runs it: ``"quick"`` fits no more than probes on
            extracted features, ``"standard"`` trains copies of the model, ``"full"`` needs
            reference models or much time.
        range: accepted values in words, with the unit.
        good: which values are good, in words.
        bad: one sentence: what a bad value means to whoever asked for the deletion.
        needs: in words, what data and models it needs.
        cost: in words; F is a forward, FB a forward and backward over one sample.
        source: authors, year, venue.
        link: where to read it.
        about: one sentence: what is measured.
        reads: what is looked at: plain ``"answers"``, ``"features"``, ``"weights"``, or the answers
            of a model or to images that were ``"disturbed"``. By default that of the group.
    """

    slug: str
    title: str
    group: Group
    level: Level
    range: str
    good: str
    bad: str
    needs: str
    cost: str
    source: str
    link: str
    about: str
    reads: Reads | None = None

    @property
    def looks_at(self) -> Reads:
        """What the metric looks at, its group's when the card does not say."""
        return self.reads or ("answers" if self.group in OUTPUT_GROUPS else "features")


@dataclass(frozen=True)
class Finding:
    """What one metric found. Every number of a report stands in one.

    Args:
        slug: of the metric.
        value: the headline number, or ``None`` when it was not run.
        interval: 95 % interval of the value, or ``None``.
        samples: number of samples (or of models) behind the value.
        controls: the same number for other models, by role.
        details: further plain numbers, lists and strings, ready for JSON.
        verdict: what the value and its controls mean together.
        note: one sentence: what limits it, or why it was not run.
        settings: hyper-parameters of the metric.
        cause: why it was not run, in one word or two.
    """

    slug: str
    value: float | None
    samples: int = 0
    interval: tuple[float, float] | None = None
    controls: Mapping[str, float] = dataclasses.field(default_factory=dict)
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)
    verdict: Verdict = "no verdict"
    note: str = ""
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    cause: Cause = ""

    def to_json(self) -> dict[str, object]:
        """Return a record of plain values; numbers that JSON cannot hold become strings."""
        record = dataclasses.asdict(self)
        plain = _plain(record)
        if not isinstance(plain, dict):
            raise TypeError("a record is a mapping")
        return plain


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Settings of one metric, and its mathematics. Override ``measure``."""

    card: ClassVar[MetricCard]

    def __post_init__(self) -> None:
        """Check every setting against its declared range.

        Raises:
            BadHyperparameter: a value is outside its range.
        """
        for declared in dataclasses.fields(self):
            fields.check(self.card.slug, declared, getattr(self, declared.name))

    def measure(self, evidence: Evidence) -> Finding:
        """Return what the evidence shows; change nothing.

        Raises:
            Missing: the evidence lacks what the metric needs; the message says what.
        """
        raise NotImplementedError(f"{type(self).__name__} measures nothing: override measure()")

    def settings(self) -> dict[str, object]:
        """Return the settings by name, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def finding(
        self,
        value: float | None,
        *,
        samples: int = 0,
        interval: tuple[float, float] | None = None,
        controls: Mapping[str, float] | None = None,
        details: Mapping[str, object] | None = None,
        verdict: Verdict = "no verdict",
        note: str = "",
    ) -> Finding:
        """Return a finding of this metric with its settings filled in."""
        return Finding(
            self.card.slug, value, samples, interval, controls or {}, details or {}, verdict, note,
            self.settings(),
        )  # fmt: skip


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


M = TypeVar("M", bound=type[Metric])
_registered: dict[str, type[Metric]] = {}
_walked = False


def register_metric(metric: M) -> M:
    """Make a metric available by its slug. Use it as the outermost class decorator.

    Raises:
        BadHyperparameter: the class has no card, does not override ``measure``, or its slug is
            taken.
    """
    card = getattr(metric, "card", None)
    if not isinstance(card, MetricCard) or metric.measure is Metric.measure:
        raise BadHyperparameter(
            f"register_metric({metric.__name__}): expected a MetricCard and an own measure(), "
            f"found {card!r}; declare `card: ClassVar[MetricCard]` and override measure"
        )
    known = _registered.get(card.slug)
    if known is not None and known.__qualname__ != metric.__qualname__:
        raise BadHyperparameter(
            f"register_metric({metric.__name__}): the slug {card.slug!r} already names "
            f"{known.__module__}.{known.__qualname__}; choose another one"
        )
    _registered[card.slug] = metric
    return metric


def all_metrics() -> list[type[Metric]]:
    """Return every registered metric class, in the order of the report's parts, then by slug."""
    global _walked
    if not _walked:
        package = importlib.import_module("forgetkit.metrics")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        _walked = True
    order = ("accuracy", "score", "distribution", "representation", "attack", "audit")
    return sorted(_registered.values(), key=lambda m: (order.index(m.card.group), m.card.slug))


def find_metric(slug: str) -> type[Metric]:
    """Return the metric class with this name.

    Raises:
        UnknownMethod: there is none; the message has the nearest names and the full list.
    """
    known = {metric.card.slug: metric for metric in all_metrics()}
    if slug not in known:
        near = difflib.get_close_matches(str(slug), known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UnknownMethod(
            f"metric {slug!r}: expected the name of a registered metric, found none of that name; "
            f"{hint}choose one of {', '.join(known)}"
        )
    return known[slug]
