"""The table of a comparison: mean and deviation over seeds, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from forgetkit.auditing.readings import MARK
from forgetkit.comparing.written import RunRecord, write_whole
from forgetkit.method import all_cards
from forgetkit.whole_files import path_of

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("D_r", "D_f", "D_tr", "D_tf", "US", "seconds")
DIGITS = {"US": 4}
PLUS_MINUS = r" \pm "
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One method on one target.

    Attributes:
        title: the method, with the settings that differ from its defaults.
        target: what was to be forgotten, in words.
        runs: seeds that ended with figures.
        failed: seeds that did not.
        mean: by column; a column that could not be measured is left out.
        deviation: sample standard deviation over seeds, for two runs and more.
        note: what the figures cannot show because the head is masked, and why runs failed.
        head_masked: whether D_f and D_tf are 0 by construction, because the method masks output
            rows.
    """

    title: str
    target: str
    runs: int
    failed: int
    mean: dict[str, float] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)
    note: str = ""
    head_masked: bool = False

    def cell(self, column: str, between: str = " ± ") -> str:
        """Return a figure for people, ``-`` where there is none."""
        if column not in self.mean:
            return "-"
        digits = DIGITS.get(column, 2)
        text = f"{self.mean[column]:.{digits}f}"
        if column in self.deviation:
            text += f"{between}{self.deviation[column]:.{digits}f}"
        return text

    @property
    def seeds(self) -> str:
        """How many seeds ended, and of how many if some failed."""
        return str(self.runs) if not self.failed else f"{self.runs} of {self.runs + self.failed}"


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison, in the order of the table.

    Attributes:
        runs: by target, then method, then seed.
    """

    runs: tuple[RunRecord, ...]

    def rows(self) -> list[Row]:
        """Return one row for each method on each target."""
        groups: dict[tuple[str, str], list[RunRecord]] = {}
        for run in self.runs:
            groups.setdefault((run.target, run.title), []).append(run)
        return [_row(group) for group in groups.values()]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        head = ("method", "target", "seeds", *COLUMNS, "note")
        lines = [
            _line(head),
            "| --- | --- |" + " ---: |" * (1 + len(COLUMNS)) + " --- |",
            *(_line(_words(row)) for row in self.rows()),
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return the table as CSV, full precision, a deviation beside each mean."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        figures = [name for column in COLUMNS for name in (column, f"{column} deviation")]
        writer.writerow(["method", "target", "seeds", "failed", *figures, "note"])
        for row in self.rows():
            values = [
                found.get(column, "") for column in COLUMNS for found in (row.mean, row.deviation)
            ]
            writer.writerow([row.title, row.target, row.runs, row.failed, *values, row.note])
        return text.getvalue()

    def latex(self) -> str:
        """Return the table as LaTeX; it needs the package booktabs."""
        heads = ("D_r", "D_f", "D_{tr}", "D_{tf}")
        named = [f"${name}$" for name in heads] + ["US", "seconds"]
        lines = [
            rf"\begin{{tabular}}{{ll{'r' * len(COLUMNS)}}}",
            r"\toprule",
            " & ".join(["method", "target", *named]) + r" \\",
            r"\midrule",
        ]
        for row in self.rows():
            some = f" ({row.seeds} seeds)" if row.failed and row.runs else ""
            mark = f" ({MARK})" if row.head_masked else ""
            words = [_escaped(row.title + some + mark), _escaped(row.target)]
            if row.runs:
                figures = [f"${row.cell(name, PLUS_MINUS)}$" for name in COLUMNS]
                cells = [*words, *(figure.replace("$-$", "--") for figure in figures)]
            else:
                width = "p{0.4\\textwidth}"
                cells = [
                    *words,
                    rf"\multicolumn{{{len(COLUMNS)}}}{{{width}}}{{{_escaped(row.note)}}}",
                ]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def to_json(self) -> dict[str, object]:
        """Return rows and runs as plain records."""
        return {
            "rows": [asdict(row) for row in self.rows()],
            "runs": [asdict(run) for run in self.runs],
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write tables, page and pictures into a folder.

        Returns:
            ``table.md``, ``table.csv``, ``table.tex``, ``comparison.html`` and the files of
            ``pictures/``.
        """
        from forgetkit.comparing.page import write_page

        place = path_of(folder, "folder")
        place.mkdir(parents=True, exist_ok=True)
        files = []
        texts = {"md": self.markdown(), "csv": self.csv(), "tex": self.latex()}
        for suffix, text in texts.items():
            files.append(place / f"table.{suffix}")
            write_whole(files[-1], text)
        return files + write_page(self.runs, self.rows(), place)

    def __rich__(self) -> Table:
        """Return one table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in ("method", "target", "seeds", *COLUMNS, "note"):
            table.add_column(name, justify="right" if name in COLUMNS else "left")
        for row in self.rows():
            table.add_row(*map(Text, _words(row)))  # their brackets are no markup
        return table


def _row(group: Sequence[RunRecord]) -> Row:
    worked = [run for run in group if not run.error]
    values = {
        column: [run.scores[column] for run in worked if column in run.scores] for column in COLUMNS
    }
    failed = [run for run in group if run.error]
    masked = bool(worked) and _masks_head(group[0])
    notes = [f"{MARK}: D_f and D_tf are 0 by construction"] if masked else []
    notes += dict.fromkeys(run.error for run in failed)
    return Row(
        group[0].title,
        group[0].target,
        len(worked),
        len(failed),
        {column: mean(found) for column, found in values.items() if found},
        {column: stdev(found) for column, found in values.items() if len(found) > 1},
        "; ".join(notes),
        masked,
    )


def _masks_head(run: RunRecord) -> bool:
    slug = run.method.get("method")
    return any(card.masks_head for card in all_cards() if card.slug == slug)


def _words(row: Row) -> list[str]:
    return [row.title, row.target, row.seeds, *map(row.cell, COLUMNS), row.note]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text.replace("\n", " "))
