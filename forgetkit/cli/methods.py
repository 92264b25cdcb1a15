"""``forgetkit methods [NAME]``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from forgetkit.cli.output import Json, reports_errors, show, show_json
from forgetkit.fields import bounds_of
from forgetkit.method import Method, all_methods, find


@reports_errors
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods with what each needs, edits and costs, or one with its settings."""
    if name is None:
        found = all_methods()
        if as_json:
            show_json({"methods": [_record(method) for method in found]})
        else:
            show(_overview(found))
        return
    method = find(name)
    if as_json:
        show_json(_record(method))
        return
    card = method.card
    show(f"{card.title} ({card.slug})\n{card.about}\n{card.source}  {card.link}")
    show(f"goals: {', '.join(card.goals)}; needs: {', '.join(card.needs) or 'nothing'}; "
         f"edits: {card.edits}; cost: {card.cost}\n")  # fmt: skip
    show(_settings(method))


def _overview(found: list[type[Method]]) -> Table:
    table = Table("name", "goals", "needs", "edits", "cost", "what it does")
    for method in found:
        card = method.card
        table.add_row(
            card.slug,
            ", ".join(card.goals),
            ", ".join(card.needs),
            card.edits,
            card.cost,
            card.about,
        )
    return table


def _settings(method: type[Method]) -> Table:
    table = Table("setting", "default", "accepted", "meaning")
    for declared in dataclasses.fields(method):
        bounds = bounds_of(declared)
        table.add_row(declared.name, str(declared.default), bounds.describe(), bounds.about)
    return table


def _record(method: type[Method]) -> dict[str, object]:
    return {
        **dataclasses.asdict(method.card),
        "settings": {
            declared.name: {
                "default": declared.default,
                **dataclasses.asdict(bounds_of(declared)),
            }
            for declared in dataclasses.fields(method)
        },
    }
