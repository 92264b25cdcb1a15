"""Pages that are made from the registry of metrics, attacks and audits: one each, and a list."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator

from tables import cell, facts_table, settings_section, write_folder

from forgetkit.auditing.record import GROUPS
from forgetkit.fields import bounds_of
from forgetkit.metric import LEVELS, Metric, MetricCard, all_metrics

SECTIONS = ("Verdict", "Source", "Differences")
INTRODUCTION = """# Metrics, attacks and audits

Everything that an [audit](../audit.md) runs, in the order of its report. Each page says what is
measured and by which formula, which values there are and which are good, what a bad one means, what
the check needs and costs, how it comes to its verdict, and where it comes from.

The first three parts and the membership attacks read outputs: an edit of the head alone can make
all of them perfect. *Weights and representation* and *Audits of what is left* look behind it.

D_f is the forget set, D_r the retain set; F is a forward pass over one sample, FB a forward and
backward pass. *Surely* above or below is [defined](../audit.md#how-a-verdict-comes-about) once for
all. An audit of a level runs everything of that level and of those below it; a check can also be
asked for by its name, whatever its level."""


def metric_page(metric: type[Metric]) -> str:
    """Return the page of one metric: card, use, definition, verdict, settings."""
    card = metric.card
    definition, sections = _parts(inspect.cleandoc(metric.__doc__ or ""))
    facts = [
        ("part of the report", GROUPS[card.group]),
        ("range and unit", card.range),
        ("good", card.good),
        ("what a bad value means", card.bad),
        ("needs", card.needs),
        ("run at level", _levels(card)),
        ("cost", card.cost),
        ("source", f"[{card.source}]({card.link})"),
    ]
    lines = [
        f"# {card.title} (`{card.slug}`)",
        card.about,
        "\n".join(facts_table(facts)),
        "## Definition",
        *(_paragraph(text) for text in definition),
        *(f"**{name}.** {_prose(text)}" for name, text in sections),
        "What the verdicts mean: [](../../audit.md#how-a-verdict-comes-about).",
        "## Use",
        f"```{{code-block}} python\n{example(metric)}\n```",
    ]
    if dataclasses.fields(metric):
        lines.append("\n".join(settings_section(metric)))
    return "\n\n".join(lines) + "\n"


def example(metric: type[Metric]) -> str:
    """Return lines that run one metric, by its name and, where it has settings, as an object."""
    slug, name = metric.card.slug, metric.__name__
    call = "result.audit(loader, test=test_loader, reference=retrained, metrics=[{}])"
    lines = [f"record = {call.format(_quoted(slug))}"]
    settings = dataclasses.fields(metric)
    if settings:
        first = settings[0]
        value = "shadows.safetensors" if bounds_of(first).kind == "artefact" else first.default
        lines.insert(0, f"from {metric.__module__} import {name}\n")
        lines.append(f"record = {call.format(f'{name}({first.name}={_quoted(value)})')}")
    return "\n".join([*lines, "print(record.findings[0].value, record.findings[0].verdict)"])


def index_page() -> str:
    """Return the page that lists all metrics, one table a part of the report."""
    lines = [INTRODUCTION]
    for group, title in GROUPS.items():
        rows = [
            f"| [`{card.slug}`](metrics/{card.slug}.md) | {cell(card.about)} | {cell(card.range)} "
            f"| {cell(card.good)} | {card.level} |"
            for card in (metric.card for metric in all_metrics())
            if card.group == group
        ]
        head = ["| name | what is measured | range | good | level |", "| --- " * 5 + "|"]
        lines += [f"## {title}", "\n".join(head + rows)]
    return "\n\n".join(lines)


def write_pages() -> None:
    """Write the pages of all metrics and their list."""
    pages = {metric.card.slug: metric_page(metric) for metric in all_metrics()}
    write_folder("metrics", pages, index_page())


def _parts(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Split a docstring into the paragraphs of the definition and the named sections."""
    definition: list[str] = []
    sections: list[tuple[str, str]] = []
    for paragraph in text.split("\n\n"):
        name, colon, rest = paragraph.partition(": ")
        if colon and name in SECTIONS:
            sections.append((name, rest[0].upper() + rest[1:]))
        else:
            definition.append(paragraph)
    return definition, sections


def _paragraph(text: str) -> str:
    """Return an indented paragraph as a block of its own, another one as prose."""
    if text.startswith("    "):
        return f"```{{code-block}} text\n{inspect.cleandoc(text)}\n```"
    return _prose(text)


def _prose(text: str) -> str:
    """Return text in one line with what Markdown would take for markup escaped, but for code."""
    return "".join(_escaped(" ".join(text.split())))


def _escaped(text: str) -> Iterator[str]:
    for number, part in enumerate(text.split("``")):
        yield f"`{part}`" if number % 2 else re.sub(r"([\\*_<\[|])", r"\\\1", part)


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _levels(card: MetricCard) -> str:
    above = LEVELS[LEVELS.index(card.level) :]
    return ", ".join(f'`"{level}"`' for level in above)
