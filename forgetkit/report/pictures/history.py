"""How the run went, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.report.drawing import PALETTE, Picture, plain, sheet, soft_grid, style
from forgetkit.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT_OUT = ("epoch", "step", "steps", "seconds", "bn_train")
MARKERS = "os^Dv<>p"
MOST = len(PALETTE)
"""Lines in one panel that can be told apart."""


def history_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw accuracies in one panel and all other numbers of the run in another.

    Args:
        rows: one an epoch; a number that an epoch lacks leaves a gap.
    """
    names = _names(rows)
    panels = {
        "accuracy": [name for name in names if "accuracy" in name],
        "loss and others": [name for name in names if "accuracy" not in name],
    }
    panels = {title: lines[:MOST] for title, lines in panels.items() if lines}
    from matplotlib.ticker import MaxNLocator

    epochs = _epochs(rows)
    with style():
        figure, drawn = sheet(len(panels), 1, height=0.4 + 2.3 * len(panels))
        for axes, (title, lines) in zip(drawn, panels.items(), strict=True):
            for place, name in enumerate(lines):
                values = [row.get(name, float("nan")) for row in rows]
                axes.plot(
                    epochs, values, color=PALETTE[place], marker=MARKERS[place], markersize=3.5,
                    linewidth=1.4, label=plain(name.replace("_", " ")),
                )  # fmt: skip
            if title == "accuracy":
                axes.set_ylim(-0.03, 1.03)
            axes.set_ylabel(title)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            soft_grid(axes)
            axes.legend(loc="best")
        drawn[-1].set_xlabel("epoch")
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw the record's history.

    Raises:
        Missing: the record has none.
    """
    del evidence
    names = _names(record.history)
    if not names:
        raise Missing("needs the history of a run, which the record does not hold")
    return Picture(
        "history", "The run by epoch",
        f"{len(record.history)} epochs, measured on the sets that the run worked on.",
        "Lines over epochs: " + ", ".join(
            f"{name.replace('_', ' ')} ends at {record.history[-1].get(name, float('nan')):.3g}"
            for name in names
        ),
        history_figure(record.history), ("epoch", *names),
        [(epoch, *(row.get(name, "") for name in names))
         for epoch, row in zip(_epochs(record.history), record.history, strict=True)],
    )  # fmt: skip


def _names(rows: Sequence[Mapping[str, float]]) -> list[str]:
    found = dict.fromkeys(name for row in rows for name in row)
    return [name for name in found if name not in LEFT_OUT]


def _epochs(rows: Sequence[Mapping[str, float]]) -> list[float]:
    return [row.get("epoch", float(place + 1)) for place, row in enumerate(rows)]
