"""``forgetkit methods [NAME]``, or only those that fit a goal and the data at hand."""

from __future__ import annotations

import dataclasses
from typing import Annotated, get_args

import typer
from rich.table import Table

from forgetkit.choosing import fits, wants
from forgetkit.cli.output import Json, reports_errors, show, show_json
from forgetkit.errors import BadTarget
from forgetkit.fields import bounds_of
from forgetkit.method import GoalKind, Method, all_methods, find

FOR_TESTS = ("toy", "probe", "rehearse")
"""What a Card holds for the contract tests alone."""


@reports_errors
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None,
    goal: Annotated[
        str | None,
        typer.Option("--for", help="Only what serves classes, instances, relabel or depoison."),
    ] = None,
    without_retain: Annotated[
        bool, typer.Option("--without-retain", help="Only what needs no samples to keep.")
    ] = False,
    with_statistics: Annotated[
        bool,
        typer.Option(
            "--with-statistics", help="Statistics saved from the training set are at hand."
        ),
    ] = False,
    with_log: Annotated[
        bool, typer.Option("--with-log", help="A log that training wrote is at hand.")
    ] = False,
    with_importance: Annotated[
        bool,
        typer.Option(
            "--with-importance", help="An importance file saved from the training set is at hand."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the methods with what each needs, edits and costs, or one with its settings."""
    if name is not None:
        _show_one(find(name), as_json=as_json)
        return
    given = {
        "statistics": with_statistics, "log": with_log, "importance_file": with_importance,
    }  # fmt: skip
    files = [file for file, there in given.items() if there]
    found = all_methods()
    if goal is not None or without_retain or files:
        found = _fitting(found, goal, has_retain=not without_retain, at_hand=files)
    if as_json:
        show_json({"methods": [_record(method) for method in found]})
    elif found:
        show(_overview(found))
    else:
        show("No registered method fits that.")


def _fitting(
    found: list[type[Method]], goal: str | None, *, has_retain: bool, at_hand: list[str]
) -> list[type[Method]]:
    """Return what serves the goal (any, when none is named) with the data at hand."""
    known: tuple[GoalKind, ...] = get_args(GoalKind)
    goals = [kind for kind in known if goal in (None, kind)]
    if not goals:
        raise BadTarget(
            f"--for {goal}: expected {', '.join(known)}, found {goal!r}; name one of these goals"
        )
    return [
        method
        for method in found
        if any(fits(method, kind, has_retain=has_retain, at_hand=at_hand) for kind in goals)
    ]


def _show_one(method: type[Method], *, as_json: bool) -> None:
    if as_json:
        show_json(_record(method))
        return
    card = method.card
    show(f"{card.title} ({card.slug})\n{card.about}\n{card.source}  {card.link}")
    show(f"goals: {', '.join(card.goals)}; needs: {', '.join(wants(method)) or 'nothing'}; "
         f"edits: {card.edits}; cost: {card.cost}\n")  # fmt: skip
    show(_settings(method))


def _overview(found: list[type[Method]]) -> Table:
    table = Table()
    table.add_column("name", no_wrap=True)  # what has to be typed is never cut
    for title in ("goals", "needs", "edits", "cost", "source"):
        table.add_column(title, overflow="fold")
    for method in found:
        card = method.card
        table.add_row(
            card.slug,
            ", ".join(card.goals),
            ", ".join(wants(method)),
            card.edits,
            card.cost,
            card.source,
        )
    return table


def _settings(method: type[Method]) -> Table:
    table = Table("setting", "default", "accepted", "meaning")
    for declared in dataclasses.fields(method):
        bounds = bounds_of(declared)
        table.add_row(declared.name, str(declared.default), bounds.describe(), bounds.about)
    return table


def _record(method: type[Method]) -> dict[str, object]:
    card = {
        declared.name: getattr(method.card, declared.name)
        for declared in dataclasses.fields(method.card)
        if declared.name not in FOR_TESTS
    }
    return {
        **card,
        "wants": wants(method),
        "settings": {
            declared.name: {
                "default": declared.default,
                **dataclasses.asdict(bounds_of(declared)),
            }
            for declared in dataclasses.fields(method)
        },
    }
