"""An audit as Markdown: verdict first, then numbers, then what they rest on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forgetkit.auditing.evidence import MEANING
from forgetkit.auditing.record import GROUPS, Audit, between, number
from forgetkit.metric import Finding

ROLES = ("original", "retrained", "untrained")


def markdown(audit: Audit) -> str:
    """Return the report of an audit.

    Args:
        audit: complete or partial.
    """
    lines = [f"# Audit: {audit.target}", "", *(f"{sentence}  " for sentence in audit.verdict), ""]
    for group, title in GROUPS.items():
        rows = [
            finding
            for finding in audit.findings
            if audit.cards[finding.slug].group == group and finding.verdict != "not run"
        ]
        if rows:
            lines += [f"## {title}", "", *_numbers(audit, rows), ""]
    lines += _bad(audit)
    not_run = [finding for finding in audit.findings if finding.verdict == "not run"]
    if not_run:
        lines += ["## Not run", "", *_table(("check", "why"), (
            (audit.cards[finding.slug].title, finding.note) for finding in not_run
        )), ""]  # fmt: skip
    for heading, sentences in (("Missing", audit.missing), ("Notes", audit.notes)):
        if sentences:
            lines += [f"## {heading}", "", *(f"- {sentence}" for sentence in sentences), ""]
    return "\n".join([*lines, *_facts(audit)]) + "\n"


def _numbers(audit: Audit, rows: Sequence[Finding]) -> list[str]:
    head = ("check", "value", "95 %", "n", *ROLES, "verdict", "good")
    return _table(
        head,
        (
            (
                audit.cards[finding.slug].title,
                number(finding.value),
                between(finding.interval),
                str(finding.samples or ""),
                *(number(finding.controls.get(role)) for role in ROLES),
                finding.verdict + (f" ({finding.note})" if finding.note else ""),
                audit.cards[finding.slug].good,
            )
            for finding in rows
        ),
    )


def _bad(audit: Audit) -> list[str]:
    rows = [f for f in audit.findings if f.verdict in ("residual", "over-forgotten")]
    if not rows:
        return []
    cards = [audit.cards[finding.slug] for finding in rows]
    return ["## What the bad values mean", "", *(f"- {c.title}: {c.bad}" for c in cards), ""]


def _facts(audit: Audit) -> list[str]:
    facts = [
        ("made", audit.created),
        ("level", audit.level + (" (interrupted)" if audit.partial else "")),
        ("seed", str(audit.seed)),
        ("device", audit.device),
        *((MEANING.get(name, name), f"{size} samples") for name, size in audit.samples.items()),
        *((f"models: {role}", str(count)) for role, count in audit.models.items()),
        *((f"SHA-256: {name}", _shown(value)) for name, value in audit.fingerprints.items()),
        *((f"seconds: {name}", f"{value:.2f}") for name, value in audit.seconds.items()),
        *((f"version: {name}", value) for name, value in audit.versions.items()),
    ]
    return ["## What this rests on", "", *_table(("", ""), facts)]


def _shown(value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"`{str(one)[:16]}`" for one in values)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )

    return [line(head), line("---" for _ in head), *(line(row) for row in rows)]
