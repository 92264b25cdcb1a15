"""Grouped bars, for a handful of names on any number of lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from forgetkit.report.drawing import PALETTE, legend_above, sheet, short, soft_grid, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HATCHES = ("", "////", "....", "xx")


def bars_figure(
    table: Mapping[str, Mapping[str, float]],
    label: str,
    *,
    spread: Mapping[str, Mapping[str, float]] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Draw one group of bars a line, one bar of each colour in it.

    Args:
        table: by name of the colour, then by name of the line: a length, in [0, 1] on a linear
            axis.
        label: of the axis.
        spread: deviations by the same names, drawn as whiskers; a bar without one has none.
        logarithmic: whether the axis is.
    """
    lines = list(dict.fromkeys(words for row in table.values() for words in row))
    thick = 0.8 / len(table)
    with style():
        figure, (axes,) = sheet(height=1.0 + len(lines) * (0.15 + 0.13 * len(table)))
        for place, (name, row) in enumerate(table.items()):
            known = [at for at, words in enumerate(lines) if words in row]
            aside = (spread or {}).get(name, {})
            axes.barh(
                [at + (place - (len(table) - 1) / 2) * thick for at in known],
                [row[lines[at]] for at in known], thick * 0.9, label=short(name, 30),
                color=PALETTE[place % len(PALETTE)], hatch=HATCHES[place % len(HATCHES)],
                linewidth=0,
                xerr=[aside.get(lines[at], float("nan")) for at in known] if aside else None,
                error_kw={"elinewidth": 0.8, "capsize": 1.5},
            )  # fmt: skip
        axes.set_yticks(range(len(lines)), [short(words, 24) for words in lines])
        axes.invert_yaxis()
        if logarithmic:
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1)
        axes.set_xlabel(label)
        soft_grid(axes, "x")
        legend_above(figure, axes, columns=3)
    return figure
