"""Several records side by side on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.readings import MARK
from forgetkit.auditing.record import Audit
from forgetkit.errors import DataError
from forgetkit.report.bars import bars_figure
from forgetkit.report.drawing import Picture, attempt, inline
from forgetkit.report.page import Drawn, environment, number_words, place_of
from forgetkit.report.pictures import radar
from forgetkit.report.record import (
    GROUPS,
    Entry,
    Record,
    mapping_in,
    number_in,
    read_record,
)
from forgetkit.report.sources import is_masked

SETS = {
    "retain": "kept, training", "forget": "forgotten, training", "test_retain": "kept, test",
    "test_forget": "forgotten, test",
}  # fmt: skip
MOST = 8
"""Records that one picture can tell apart."""


def write_comparison(
    records: Sequence[Mapping[str, object] | Audit],
    folder: Path | str,
    *,
    name: str = "comparison.html",
) -> Path:
    """Write one page about several audits: a column a record, a row a number.

    Beside the page: the same in Markdown, and ``pictures/`` with SVG and CSV.

    Args:
        records: what audits returned; their ``name`` is the heading of the column.
        folder: created when it does not exist; files of the same name are replaced.
        name: of the page.

    Returns:
        The page.

    Raises:
        DataError: there are fewer than two, one of them is no record, or the name does not end
            in .html.
    """
    if len(records) < 2:
        raise DataError(
            f"records: expected at least two to compare, found {len(records)}; pass several, or "
            "write_report for one"
        )
    found = _named([read_record(record) for record in records])
    page = place_of(folder, name)
    drawn = _draw(found)
    for picture in drawn.pictures:
        picture.write(page.parent / "pictures")
    words = {
        "records": found, "groups": _groups(found), "left_out": drawn.left_out,
        "minimal": _minimal(found),
    }  # fmt: skip
    pages = environment()
    markup = pages.get_template("comparison.html.j2").render(
        words, pictures=[(picture, inline(picture)) for picture in drawn.pictures]
    )
    page.write_text(markup, encoding="utf-8")
    text = pages.get_template("comparison.md.j2").render(words, pictures=drawn.pictures)
    page.with_suffix(".md").write_text(text, encoding="utf-8")
    return page


def _draw(records: Sequence[Record]) -> Drawn:
    pictures: list[Picture] = []
    left_out: dict[str, str] = {}
    some = records[:MOST]
    if len(records) > MOST:
        left_out["Records"] = f"pictures show the first {MOST} of {len(records)}"
    for title, draw in (("Accuracy by set", _accuracy), ("All axes at once", radar.picture_of)):
        found = attempt(partial(draw, some))
        if isinstance(found, str):
            left_out[title] = found
        else:
            pictures.append(found)
    return Drawn(pictures, left_out)


def _accuracy(records: Sequence[Record]) -> Picture:
    table = {
        record.name: {
            words: share
            for split, words in SETS.items()
            if (share := radar.accuracy_on(record, split)) is not None
        }
        for record in records
    }
    table = {name: row for name, row in table.items() if row}
    if not table:
        raise Missing("needs accuracies by set, which no record holds")
    masked = [record.name for record in records if is_masked(record, None)]
    mark = f" Forgotten 0 by construction ({MARK}): {', '.join(masked)}." if masked else ""
    return Picture(
        "accuracy-by-set", "Accuracy by set",
        "Kept samples should stay where they were; for a forgotten class low is what was asked "
        f"for, for forgotten samples the retrained model's accuracy is.{mark}",
        "Bars of accuracy: " + "; ".join(
            f"{name}: " + ", ".join(f"{words} {share:.0%}" for words, share in row.items())
            for name, row in table.items()
        ),
        bars_figure(table, "accuracy"), ("name", "set", "accuracy"),
        [(name, words, share) for name, row in table.items() for words, share in row.items()],
    )  # fmt: skip


def _named(records: Sequence[Record]) -> list[Record]:
    """Return records whose names differ."""
    seen: dict[str, int] = {}
    found = []
    for record in records:
        seen[record.name] = seen.get(record.name, 0) + 1
        number = seen[record.name]
        found.append(record if number == 1 else replace(record, name=f"{record.name} ({number})"))
    return found


def _groups(records: Sequence[Record]) -> list[tuple[str, list[tuple[Entry, list[Entry | None]]]]]:
    """Return by part of the report the metrics, each with its finding in every record."""
    tables = [{entry.slug: entry for entry in record.findings} for record in records]
    first: dict[str, Entry] = {}
    for table in tables:
        for slug, entry in table.items():
            first.setdefault(slug, entry)
    groups = {
        title: [
            (entry, [table.get(slug) for table in tables])
            for slug, entry in first.items()
            if entry.group == group
        ]
        for group, title in GROUPS.items()
    }
    return [(title, rows) for title, rows in groups.items() if rows]


def _minimal(records: Sequence[Record]) -> list[tuple[str, list[float | str | None]]]:
    """Return the rows that a paper needs at least, with one value a record."""
    rows: list[tuple[str, list[float | str | None]]] = [
        (f"accuracy: {words}", [_accuracy_words(record, split) for record in records])
        for split, words in SETS.items()
    ]
    for title, slug in (
        ("unlearning score", "us"), ("attack AUC", "mia_loss"), ("KL to retrained", "kl"),
    ):  # fmt: skip
        rows.append((title, [_value(record, slug) for record in records]))
    rows.append(("attack AUC, retrained", [_control(r, "mia_loss") for r in records]))
    rows.append(("probe excess", [radar.probe_excess(record) for record in records]))
    rows.append(("steps to relearn", [_value(record, "relearning") for record in records]))
    rows.append(("steps to relearn, retrained", [_control(r, "relearning") for r in records]))
    rows.append(("seconds", [radar.seconds_of(record) for record in records]))
    return [(title, row) for title, row in rows if any(value is not None for value in row)]


def _accuracy_words(record: Record, split: str) -> float | str | None:
    """Return an accuracy, marked where it is 0 by construction."""
    share = radar.accuracy_on(record, split)
    if share is None or not split.endswith("forget") or not is_masked(record, None):
        return share
    return f"{number_words(share)} ({MARK})"


def _value(record: Record, slug: str) -> float | str | None:
    entry = record.find(slug)
    if entry is None or not entry.mark:
        return None if entry is None else entry.value
    return number_words(entry.value) + entry.mark


def _control(record: Record, slug: str) -> float | str | None:
    entry = record.find(slug)
    found = None if entry is None else mapping_in(entry.controls).get("retrained")
    return found if isinstance(found, str) else number_in(found)
