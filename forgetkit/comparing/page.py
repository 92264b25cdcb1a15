"""One self-contained page of a comparison, and its pictures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forgetkit.comparing.pictures import draw
from forgetkit.comparing.table import COLUMNS, Row
from forgetkit.comparing.written import RunRecord, write_whole
from forgetkit.report.drawing import inline
from forgetkit.report.page import environment, facts_of

PAGE = "comparison.html"


def write_page(runs: Sequence[RunRecord], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``comparison.html`` and ``pictures/`` with SVG and CSV; return the files.

    Args:
        runs: for what they have in common.
        rows: of the table.
        folder: exists.
    """
    drawn = draw(rows)
    targets: dict[str, list[Row]] = {}
    for row in rows:
        targets.setdefault(row.target, []).append(row)
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    files = []
    for picture in drawn.pictures:
        for suffix, text in (("svg", picture.svg), ("csv", picture.numbers)):
            files.append(place / f"{picture.slug}.{suffix}")
            write_whole(files[-1], text)
    markup = environment().get_template("methods.html.j2").render(
        targets=targets,
        columns=COLUMNS,
        methods=len({row.title for row in rows}) - ("original" in {row.title for row in rows}),
        seeds=len({run.seed for run in runs}),
        facts=facts_of(_facts(runs)),
        pictures=[(picture, inline(picture)) for picture in drawn.pictures],
        left_out=drawn.left_out,
    )  # fmt: skip
    write_whole(folder / PAGE, markup)
    return [folder / PAGE, *files]


def _facts(runs: Sequence[RunRecord]) -> dict[str, object]:
    """Return what all runs have in common, and the settings of each method."""
    shared: dict[str, object] = {
        key: runs[0].identity[key]
        for key in ("model", "version", "setting")
        if runs and key in runs[0].identity
    }
    methods = {run.title: dict(run.method) for run in runs if len(run.method) > 1}
    return {**shared, **{f"settings of {title}": record for title, record in methods.items()}}
