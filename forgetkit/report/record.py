"""A record of an audit as the report reads it: checked, with each metric's card beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forgetkit.auditing.readings import HIDDEN, MARK
from forgetkit.auditing.record import Audit
from forgetkit.errors import DataError, MissingFile, UnknownMethod
from forgetkit.metric import MetricCard, find_metric

GROUPS = {
    "accuracy": "Accuracy",
    "score": "Scores",
    "distribution": "Output distributions",
    "representation": "Weights and representation",
    "attack": "Membership attacks",
    "audit": "What is left behind the output",
    "other": "Other",
}
OWN_PLACE = (
    "verdict", "lines", "findings", "history", "name", "cards", "missing", "notes", "beyond",
    "metric_seconds", "schema",
)  # fmt: skip
"""Keys of a record that have a place of their own; all others stand in the table of facts."""


@dataclass(frozen=True)
class Entry:
    """One finding of a record.

    Args:
        slug: of the metric.
        value: the headline number; a string for what JSON has no number for; ``None`` = not run.
        samples: behind the value.
        interval: 95 % interval, or ``None``.
        controls: the same number for other models, by role.
        details: everything else.
        verdict: one word or two.
        note: one sentence, or nothing.
        settings: hyper-parameters of the metric.
        card: of the metric, or ``None`` when no metric of that name is registered here.
    """

    slug: str
    value: float | str | None
    samples: int
    interval: tuple[object, object] | None
    controls: Mapping[str, object]
    details: Mapping[str, object]
    verdict: str
    note: str
    settings: Mapping[str, object]
    card: MetricCard | None

    @property
    def title(self) -> str:
        """The metric's name for people."""
        return self.card.title if self.card else self.slug.replace("_", " ").capitalize()

    @property
    def group(self) -> str:
        """Part of the report that it belongs to."""
        return self.card.group if self.card else "other"

    @property
    def number(self) -> float | None:
        """The headline value when it is a finite number."""
        return number_in(self.value)

    @property
    def mark(self) -> str:
        """What stands beside a value that rests on a forget accuracy of 0 by construction."""
        return f" ({MARK})" if HIDDEN in self.note else ""

    def control(self, role: str) -> float | None:
        """Return the number of another model when it is a finite one."""
        return number_in(self.controls.get(role))


@dataclass(frozen=True)
class Record:
    """What one audit found.

    Args:
        name: what to call it beside others.
        verdict: one sentence.
        lines: further sentences.
        missing: what was not given, and what follows.
        beyond: names of checks that were not asked for.
        findings: in the record's order.
        history: one row an epoch, as numbers by name.
        facts: everything else: model, versions, seed, times.
    """

    name: str
    verdict: str
    lines: tuple[str, ...]
    missing: tuple[str, ...]
    beyond: tuple[str, ...]
    findings: tuple[Entry, ...]
    history: tuple[Mapping[str, float], ...]
    facts: Mapping[str, object] = field(default_factory=dict)

    def find(self, *slugs: str) -> Entry | None:
        """Return the first finding with one of these names that was run."""
        known = {entry.slug: entry for entry in self.findings if entry.verdict != "not run"}
        return next((known[slug] for slug in slugs if slug in known), None)

    @property
    def forget_classes(self) -> tuple[int, ...]:
        """Forgotten class indices as far as the record names them."""
        found = self.facts.get("forget_classes")
        if found is None:
            found = mapping_in(self.facts.get("forget set")).get("classes")
        return tuple(c for c in sequence_in(found) if isinstance(c, int))


def number_in(value: object) -> float | None:
    """Return a finite number, or ``None`` for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def mapping_in(value: object) -> Mapping[str, object]:
    """Return a mapping, or an empty one for everything else."""
    return value if isinstance(value, Mapping) else {}


def sequence_in(value: object) -> Sequence[object]:
    """Return a list or tuple, or an empty one for everything else."""
    return value if isinstance(value, (list, tuple)) else ()


def numbers_in(value: object) -> list[float]:
    """Return a list of finite numbers, or an empty one when any entry is none."""
    found = [number_in(entry) for entry in sequence_in(value)]
    kept = [entry for entry in found if entry is not None]
    return kept if len(kept) == len(found) else []


def load_record(path: Path | str) -> dict[str, object]:
    """Read a record that an audit wrote.

    Raises:
        DataError: the file holds no JSON object.
        MissingFile: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(
            f"record {path}: expected the JSON that an audit wrote, found no such file; pass the "
            "audit.json of an audit"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"record {path}: expected the JSON that an audit wrote, found something else "
            f"({error}); pass the audit.json of an audit"
        ) from None
    if not isinstance(raw, dict):
        raise DataError(
            f"record {path}: expected a JSON object, found a {type(raw).__name__}; pass the "
            "audit.json of an audit"
        )
    raw.setdefault(
        "name", path.resolve().parent.name if path.stem in ("audit", "record") else path.stem
    )
    return raw


def read_record(given: Mapping[str, object] | Audit) -> Record:
    """Return a record with its parts checked.

    Raises:
        DataError: it is none, there is no list of findings, or one of them has no name.
    """
    raw = given if isinstance(given, Mapping) else _as_json(given)
    found = raw.get("findings")
    if not isinstance(found, (list, tuple)):
        raise DataError(
            f"record: expected a list of findings under 'findings', found "
            f"{'nothing' if found is None else type(found).__name__}; pass what an audit returned"
        )
    cards = mapping_in(raw.get("cards"))
    history = [
        {str(key): number for key, value in row.items() if (number := number_in(value)) is not None}
        for row in sequence_in(raw.get("history"))
        if isinstance(row, Mapping)
    ]
    facts = {str(key): value for key, value in raw.items() if key not in OWN_PLACE}
    names = [raw.get("name"), *(facts.get(key) for key in ("method", "target", "model"))]
    verdict = raw.get("verdict")
    sentences = [verdict] if isinstance(verdict, str) else _sentences(verdict)
    return Record(
        name=next((name for name in names if isinstance(name, str) and name), "a model"),
        verdict=sentences[0] if sentences else "No verdict: the record has none.",
        lines=(*sentences[1:], *_sentences(raw.get("lines")), *_sentences(raw.get("notes"))),
        missing=tuple(_sentences(raw.get("missing"))),
        beyond=tuple(_title(slug, cards) for slug in _sentences(raw.get("beyond"))),
        findings=tuple(_entry(position, finding, cards) for position, finding in enumerate(found)),
        history=tuple(history),
        facts=facts,
    )


def _as_json(given: Audit) -> Mapping[str, object]:
    if not isinstance(given, Audit):
        raise DataError(
            f"record: expected what an audit returned, or the JSON that it wrote, found "
            f"{type(given).__name__}; pass the result of audit(), or load_record(path)"
        )
    return given.to_json()


def _sentences(value: object) -> list[str]:
    return [str(line) for line in sequence_in(value)]


def _entry(position: int, raw: object, cards: Mapping[str, object]) -> Entry:
    finding = mapping_in(raw)
    slug = finding.get("slug")
    if not isinstance(slug, str):
        raise DataError(
            f"record: expected a finding with a 'slug', found {raw!r} at position {position}; "
            "pass what an audit returned"
        )
    value = finding.get("value")
    samples = finding.get("samples")
    interval = sequence_in(finding.get("interval"))
    return Entry(
        slug=slug,
        value=value if isinstance(value, str) or value is None else number_in(value),
        samples=samples if isinstance(samples, int) else 0,
        interval=(interval[0], interval[1]) if len(interval) == 2 else None,
        controls=mapping_in(finding.get("controls")),
        details=mapping_in(finding.get("details")),
        verdict=str(finding.get("verdict") or "no verdict"),
        note=str(finding.get("note") or ""),
        settings=mapping_in(finding.get("settings")),
        card=_card(slug, cards),
    )


def _card(slug: str, cards: Mapping[str, object]) -> MetricCard | None:
    """Return the card that the record carries, else the registered one of that name."""
    told = {str(key): value for key, value in mapping_in(cards.get(slug)).items()}
    try:
        return MetricCard(**told) if told else find_metric(slug).card  # type: ignore[arg-type]  # else a TypeError
    except (TypeError, UnknownMethod):  # a record of another version
        return None


def _title(slug: str, cards: Mapping[str, object]) -> str:
    card = _card(slug, cards)
    return card.title if card else slug.replace("_", " ")
