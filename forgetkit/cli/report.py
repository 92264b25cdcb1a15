"""``forgetkit report RECORD...``: a page of one record, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forgetkit.cli.output import Json, reports_errors, show, show_json


@reports_errors
def report(
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORD...",
            help="The JSON that an audit wrote; several make a page that compares them.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page; Markdown and pictures go beside it.")] = Path(
        "report.html"
    ),
    as_json: Json = False,
) -> None:
    """Turn the record of an audit into a page to look at."""
    from forgetkit.report import load_record, write_comparison, write_report

    found = [load_record(path) for path in records]
    if len(found) == 1:
        page = write_report(found[0], out.parent, name=out.name)
    else:
        page = write_comparison(found, out.parent, name=out.name)
    if as_json:
        show_json({"page": str(page), "markdown": str(page.with_suffix(".md"))})
    else:
        show(f"wrote {page} and {page.with_suffix('.md')}")
