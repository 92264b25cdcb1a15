"""Accuracy of each class before and after, beside a retrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.report.drawing import (
    COLOURS,
    HATCHES,
    NAMES,
    ORDER,
    WIDTH,
    Picture,
    legend_above,
    sheet,
    short,
    soft_grid,
    style,
)
from forgetkit.report.record import Record, numbers_in, sequence_in
from forgetkit.report.sources import (
    class_name,
    details_of,
    forgotten_classes,
    is_masked,
    lines_by_role,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 30
"""More classes than this, and only those that changed most are drawn."""
SHOWN = 15


def class_accuracy_figure(
    names: Sequence[str],
    accuracy: Mapping[str, Sequence[float]],
    *,
    forgotten: Sequence[int] = (),
    masked: bool = False,
) -> Figure:
    """Draw horizontal bars, one group a class.

    Args:
        names: of the classes, top to bottom.
        accuracy: by role, fractions, one entry a class.
        forgotten: positions in ``names`` to mark.
        masked: whether the forgotten classes' bar is 0 by construction.
    """
    roles = [role for role in ORDER if role in accuracy]
    with style():
        figure, (axes,) = sheet(height=1.0 + len(names) * (0.12 + 0.11 * len(roles)), width=WIDTH)
        thick = 0.8 / len(roles)
        for place, role in enumerate(roles):
            heights = [row + (place - (len(roles) - 1) / 2) * thick for row in range(len(names))]
            axes.barh(
                heights, accuracy[role], thick * 0.92, label=NAMES[role], color=COLOURS[role],
                hatch=HATCHES[role], linewidth=0,
            )  # fmt: skip
            if masked and role == "unlearned":
                for row in forgotten:
                    axes.text(0.01, heights[row], "masked", va="center", fontsize=7)
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        for row in forgotten:
            axes.get_yticklabels()[row].set_fontweight("bold")
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("accuracy (forgotten classes in bold)" if forgotten else "accuracy")
        soft_grid(axes, "x")
        legend_above(figure, axes)
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw from the record, or from the evidence when the record lacks it.

    Raises:
        Missing: neither has accuracies by class.
    """
    details = details_of(record, evidence, "class_accuracy")
    classes = [c for c in sequence_in(details.get("classes")) if isinstance(c, int)]
    names = [str(name) for name in sequence_in(details.get("names"))]
    if len(names) != len(classes):
        names = [class_name(record, evidence, label) for label in classes]
    table = {
        role: shares
        for role, shares in lines_by_role(details.get("accuracy")).items()
        if len(shares) == len(classes)
    }
    if not classes or "unlearned" not in table:
        raise Missing("needs accuracies by class, which the record does not hold")
    gone = forgotten_classes(record, evidence)
    shown = _shown(classes, table, gone)
    masked = is_masked(record, evidence)
    figure = class_accuracy_figure(
        [names[row] for row in shown],
        {role: [shares[row] for row in shown] for role, shares in table.items()},
        forgotten=[place for place, row in enumerate(shown) if classes[row] in gone],
        masked=masked,
    )
    counts = numbers_in(details.get("samples"))
    ends = sorted({int(min(counts)), int(max(counts))}) if counts else []
    words = " to ".join(map(str, ends))
    size = f" {words} samples a class." if counts else ""
    cut = "" if len(shown) == len(classes) else (
        f" Of {len(classes)} classes, the forgotten ones and those that changed most."
    )  # fmt: skip
    return Picture(
        "class-accuracy", "Accuracy by class",
        f"A kept class whose bar shrank paid for the forgetting.{cut}{size}"
        + (" The bar of a masked class is 0 by construction." if masked else ""),
        "Bars of the accuracy of each class: " + "; ".join(
            f"{names[row]} {table['unlearned'][row]:.0%} after" for row in shown
        ),
        figure, ("class", "name", *table),
        [(classes[r], names[r], *(shares[r] for shares in table.values()))
         for r in range(len(classes))],
    )  # fmt: skip


def _shown(
    classes: Sequence[int], table: Mapping[str, Sequence[float]], gone: Sequence[int]
) -> list[int]:
    """Return rows to draw: forgotten classes first, then in order, or the most changed ones."""
    first = [row for row, label in enumerate(classes) if label in gone]
    rest = [row for row in range(len(classes)) if row not in first]
    if len(classes) > MOST:
        other = table.get("original") or table.get("retrained") or [1.0] * len(classes)
        rest.sort(key=lambda row: -abs(other[row] - table["unlearned"][row]))
        first, rest = first[:SHOWN], rest[:SHOWN]
    return first + rest
