"""One self-contained page from a record: HTML, Markdown, pictures and their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.record import Audit
from forgetkit.errors import DataError
from forgetkit.report.drawing import NAMES, ORDER, Picture, attempt, inline
from forgetkit.report.pictures import PICTURES
from forgetkit.report.record import (
    GROUPS,
    Entry,
    Record,
    number_in,
    read_record,
)

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST_FACT = 400
"""Characters of a fact that are printed; the record has the rest."""
BADGES = {
    "as retrain": "good", "residual": "bad", "over-forgotten": "bad", "not decidable": "open",
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """The pictures of a page, and why the others are not there."""

    pictures: Sequence[Picture]
    left_out: Mapping[str, str]


def write_report(
    record: Mapping[str, object] | Audit,
    folder: Path | str,
    evidence: Evidence | None = None,
    *,
    name: str = "report.html",
) -> Path:
    """Write a report of one audit.

    Beside the page: the same in Markdown, and ``pictures/`` with each picture as SVG and its
    numbers as CSV. The page needs no network, no script and none of these files.

    Args:
        record: what an audit returned, or the JSON that it wrote.
        folder: created when it does not exist; files of the same name are replaced.
        evidence: models, samples and outputs, for pictures that a record cannot hold (features,
            images). Models are left as they were.
        name: of the page.

    Returns:
        The page.

    Raises:
        DataError: the record is no record, or the page's name does not end in .html.
    """
    found = read_record(record)
    page = place_of(folder, name)
    drawn = draw(found, evidence)
    for picture in drawn.pictures:
        picture.write(page.parent / "pictures")
    words = _words(found, drawn)
    pages = environment()
    markup = pages.get_template("report.html.j2").render(
        words, pictures=[(picture, inline(picture)) for picture in drawn.pictures]
    )
    page.write_text(markup, encoding="utf-8")
    text = pages.get_template("report.md.j2").render(words, pictures=drawn.pictures)
    page.with_suffix(".md").write_text(text, encoding="utf-8")
    return page


def place_of(folder: Path | str, name: str) -> Path:
    """Return where a page goes, in a folder that exists.

    Raises:
        DataError: the name does not end in .html or .htm.
    """
    page = Path(folder) / name
    if page.suffix.lower() not in (".html", ".htm"):
        raise DataError(
            f"name: expected a page that ends in .html, found {name!r}; the Markdown goes beside it"
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    return page


def draw(record: Record, evidence: Evidence | None = None) -> Drawn:
    """Draw every picture that the record and the evidence allow; of the others say why not."""
    pictures: list[Picture] = []
    left_out: dict[str, str] = {}
    for title, picture in PICTURES.items():
        found = attempt(partial(picture, record, evidence))
        if isinstance(found, str):
            left_out[title] = found
        else:
            pictures.append(found)
    return Drawn(pictures, left_out)


def environment() -> Environment:
    """Return the templates; HTML is escaped, Markdown is not."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=PackageLoader("forgetkit.report"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=select_autoescape(("html.j2",)),
    )  # fmt: skip
    made.filters |= {"number": number_words, "interval": interval_words, "cell": _cell}
    made.globals |= {"badges": BADGES, "names": NAMES}
    return made


def _words(record: Record, drawn: Drawn) -> dict[str, object]:
    groups: dict[str, list[Entry]] = {}
    for entry in record.findings:
        if entry.verdict != "not run":
            groups.setdefault(entry.group, []).append(entry)
    present = {role for entry in record.findings for role in entry.controls}
    return {
        "record": record,
        "groups": [(GROUPS[group], groups[group]) for group in GROUPS if group in groups],
        "roles": [role for role in ORDER if role in present],
        "not_run": [entry for entry in record.findings if entry.verdict == "not run"],
        "left_out": drawn.left_out,
        "facts": facts_of(record.facts),
    }


def facts_of(facts: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return names and short texts, nested tables flattened by one level."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping) and value and len(value) <= 20:
            rows += [(f"{name}: {part}", _fact(entry)) for part, entry in value.items()]
        else:
            rows.append((name, _fact(value)))
    return rows


def _fact(value: object) -> str:
    if isinstance(value, float):
        return number_words(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST_FACT else f"{text[: LONGEST_FACT - 1]}…"


def number_words(value: object) -> str:
    """Return a number with four digits that count, as people write it; a dash for none."""
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "-∞", "nan": "no number"}.get(value, value)
    number = number_in(value)
    if number is None:
        return "\N{EN DASH}"
    if number == int(number) and abs(number) < 1e6:
        return str(int(number))
    plain = f"{number:.4f}".rstrip("0").rstrip(".")
    return plain if 1e-3 <= abs(number) < 10 else f"{number:.4g}"


def interval_words(ends: Sequence[object] | None) -> str:
    """Return an interval in brackets, or nothing."""
    return "" if ends is None else f"[{number_words(ends[0])}, {number_words(ends[1])}]"


def _cell(text: object) -> str:
    """Return a text that does not break a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
