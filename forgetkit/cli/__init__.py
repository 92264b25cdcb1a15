"""The command line: one file a command, all over the same public calls."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from forgetkit import __version__
from forgetkit.cli import audit, benchmark, demo, inspect, methods, patch, report, run, search

app = typer.Typer(
    name="forgetkit",
    help="Make a trained vision classifier forget a class, a set of images or a wrong label.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _in_group() -> bool:
    """Return whether the process belongs to a process group, without an import of torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _leave_group() -> None:
    """Leave the process group that a launched command joined.

    One that is open at the interpreter's end may abort the process there, and the launcher then
    stops the others.
    """
    if _in_group():
        sys.modules["torch.distributed"].destroy_process_group()


@app.callback()
def _main(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Hold the options that come before a command."""
    if not _in_group():  # else the group is the caller's
        context.call_on_close(_leave_group)
    # A console script has its own folder on the path; package.module:factory means the user's.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    # Other libraries' bars for steps that take milliseconds would bury the command's own lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("audit")(audit.audit)
app.command("benchmark")(benchmark.benchmark)
app.command("search")(search.search)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("methods")(methods.methods)
app.add_typer(patch.app, name="patch")
