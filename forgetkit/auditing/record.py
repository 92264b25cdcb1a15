"""The record of an audit: findings, verdict, and all that is needed to read and repeat them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forgetkit.errors import DataError, MissingFile
from forgetkit.metric import Finding, MetricCard
from forgetkit.whole_files import path_of, written_whole

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
GROUPS = {
    "accuracy": "Accuracy",
    "score": "Scores",
    "distribution": "Output distributions",
    "representation": "Weights and representation",
    "attack": "Membership attacks",
    "audit": "Audits of what is left",
}


@dataclass(frozen=True)
class Audit:
    """What an audit found. Numbers stand in ``findings``; the rest says where they come from.

    Attributes:
        findings: one a metric, in the order of the report's parts.
        cards: what each metric is, by slug.
        verdict: sentences made from the findings' verdicts.
        target: what was to be forgotten, in words.
        goal: the request as a record.
        level: ``"quick"``, ``"standard"`` or ``"full"``.
        forget_classes: forgotten class indices; for other goals those of the forget samples.
        num_classes: width of the logits.
        class_names: by index, or ``None``.
        samples: size of each set.
        models: roles that were at hand, with the number of models of each.
        fingerprints: SHA-256 of each model and of the forget set.
        head_only: whether only the head differs from the original; ``None`` when not known.
        changed: names of the tensors that differ from the original, or ``None``.
        head_masked: whether the forget accuracy is 0 by construction.
        missing: what was not given, and what follows; one sentence each.
        notes: further remarks.
        beyond: slugs of the metrics of higher levels, which were not asked for.
        seconds: wall time by phase.
        metric_seconds: wall time by metric.
        estimated_seconds: what the audit was thought to take before it started, without fitting
            heads to many classes.
        seed: of every random choice.
        device: where it was computed.
        versions: of Python and of the libraries.
        created: date and time, ISO 8601, UTC.
        partial: whether it was interrupted.
        history: of the unlearning run, one record an epoch, where the audit knows it.
        times: seconds of the unlearning run by phase, and of all of it as ``"unlearning"``.
    """

    findings: tuple[Finding, ...]
    cards: Mapping[str, MetricCard]
    verdict: tuple[str, ...]
    target: str
    goal: Mapping[str, object]
    level: str
    forget_classes: tuple[int, ...] = ()
    num_classes: int = 0
    class_names: list[str] | None = None
    samples: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    fingerprints: Mapping[str, object] = field(default_factory=dict)
    head_only: bool | None = None
    changed: list[str] | None = None
    head_masked: bool = False
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    metric_seconds: Mapping[str, float] = field(default_factory=dict)
    estimated_seconds: float | None = None
    seed: int = 0
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    partial: bool = False
    history: list[Mapping[str, float]] = field(default_factory=list)
    times: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, slug: str) -> Finding:
        """Return the finding of a metric.

        Raises:
            KeyError: this audit has none of that name.
        """
        for finding in self.findings:
            if finding.slug == slug:
                return finding
        raise KeyError(slug)

    @property
    def summary(self) -> str:
        """The verdict as one text."""
        return " ".join(self.verdict)

    def to_json(self) -> dict[str, object]:
        """Return everything as plain records; numbers that JSON cannot hold become strings."""
        record: dict[str, object] = {"schema": SCHEMA}
        for entry in dataclasses.fields(self):
            record[entry.name] = getattr(self, entry.name)
        record["findings"] = [finding.to_json() for finding in self.findings]
        record["cards"] = {slug: dataclasses.asdict(card) for slug, card in self.cards.items()}
        # One round trip turns tuples into lists and numbers of numpy and torch into plain ones.
        plain = _finite(json.loads(json.dumps(record, default=_plain)))
        if not isinstance(plain, dict):
            raise TypeError("a record is a mapping")
        return plain

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Audit:
        """Build the audit that ``to_json`` described.

        Raises:
            DataError: the record is not one of an audit, or of another version.
        """
        found = record.get("schema")
        if found != SCHEMA:
            raise DataError(
                f"Audit.from_json(record): expected an audit's record of schema {SCHEMA}, found "
                f"{found!r}; pass what Audit.to_json() or Audit.save() wrote"
            )
        try:
            return cls._built(record)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise DataError(
                f"Audit.from_json(record): expected every entry of an audit, found a record where "
                f"this fails: {type(error).__name__}: {error}; pass what Audit.save() wrote"
            ) from error

    @classmethod
    def _built(cls, record: Mapping[str, object]) -> Audit:
        names = {entry.name for entry in dataclasses.fields(cls)}
        values = {name: value for name, value in record.items() if name in names}
        listed, cards = values["findings"], values["cards"]
        if not isinstance(listed, list) or not isinstance(cards, dict):
            raise TypeError("findings are a list and cards a mapping")
        values["findings"] = tuple(_finding(row) for row in listed)
        values["cards"] = {slug: MetricCard(**card) for slug, card in cards.items()}
        for name in ("verdict", "forget_classes"):
            values[name] = tuple(values[name])  # type: ignore[arg-type]  # else a TypeError above
        return cls(**values)  # type: ignore[arg-type]  # written by to_json

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON, replacing a file of this name; return it.

        The folder is made where there is none.

        Raises:
            OSError: the folder cannot be written.
        """
        target = path_of(path, "path")
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        with written_whole(target) as partial:
            partial.write_text(text, encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Audit:
        """Read a record that ``save`` wrote.

        Raises:
            MissingFile: there is no such file.
            DataError: it holds something else.
        """
        source = path_of(path, "path")
        if not source.is_file():
            raise MissingFile(
                f"path {source} is expected to be an audit's record; none there; pass the file "
                "that Audit.save() wrote"
            )
        try:
            record = json.loads(source.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(
                f"Audit.load({source}): expected JSON, found something else ({error}); pass the "
                "file that Audit.save() wrote"
            ) from error
        return cls.from_json(record if isinstance(record, dict) else {})

    def markdown(self) -> str:
        """Return the whole report as Markdown."""
        from forgetkit.auditing.written import markdown

        return markdown(self)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return title, value, interval, the retrained model's value and verdict of what ran."""
        return [
            (
                self.cards[finding.slug].title,
                number(finding.value),
                between(finding.interval),
                number(finding.controls.get("retrained")),
                finding.verdict,
            )
            for finding in self.findings
            if finding.verdict != "not run"
        ]

    def __rich__(self) -> Table:
        """Return one table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        state = ", interrupted" if self.partial else ""
        table = Table(  # brackets in names are no markup
            title=Text(f"Audit ({self.level}{state}): {self.target}", style="table.title"),
            caption=Text("\n".join(self.verdict), style="table.caption"),
            caption_justify="left",
        )
        for name in ("", "value", "95 %", "retrained", "verdict"):
            table.add_column(name, justify="left" if name in ("", "verdict") else "right")
        for row in self.rows():
            table.add_row(*map(Text, row))
        return table

    def __repr__(self) -> str:
        """Return the same table as plain text."""
        state = ", interrupted" if self.partial else ""
        lines = [f"Audit({self.level}{state}, {self.target}, seed={self.seed})"]
        lines += [
            f"  {title[:38]:<38} {value:>9} {interval:>18} {other:>9}  {judged}"
            for title, value, interval, other, judged in self.rows()
        ]
        return "\n".join([*lines, *(f"  {line}" for line in self.verdict)])


def number(value: float | None) -> str:
    """Return a number for people, or an empty text."""
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3g}"


def between(interval: tuple[float, float] | None) -> str:
    """Return an interval for people, or an empty text."""
    return "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def _finding(row: Mapping[str, object]) -> Finding:
    """Build a finding; infinities and NaN come back from the strings that stand for them."""
    values = dict(row)
    values["value"] = _float(values["value"])
    interval = values["interval"]
    if isinstance(interval, list):
        values["interval"] = tuple(_float(end) for end in interval)
    controls = values["controls"]
    if isinstance(controls, dict):
        values["controls"] = {role: _float(value) for role, value in controls.items()}
    return Finding(**values)  # type: ignore[arg-type]  # written by Finding.to_json


def _float(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float, str)):
        raise TypeError(f"expected a number, found {type(value).__name__}")
    return float(value)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    listed = getattr(value, "tolist", None)
    return listed() if callable(listed) else str(value)


def _finite(value: object) -> object:
    """Return the same record with strings for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
