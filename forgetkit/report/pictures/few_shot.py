"""How few samples bring the class back: probes and prototypes over the number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.report.drawing import (
    COLOURS,
    DASHES,
    NAMES,
    ORDER,
    Picture,
    legend_above,
    sheet,
    soft_grid,
    style,
)
from forgetkit.report.record import Record, mapping_in, number_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCES = {"linear_probe": "linear probe", "prototype": "nearest class mean"}
Lines = Mapping[str, Mapping[int, float]]
MARKERS = {"original": "o", "unlearned": "s", "retrained": "^", "untrained": "v"}


def few_shot_figure(panels: Mapping[str, Lines]) -> Figure:
    """Draw accuracy on the forgotten classes over samples a class, one panel an attack.

    Args:
        panels: by title, then by role, accuracy by number of samples.
    """
    with style():
        figure, drawn = sheet(len(panels), 1, height=0.6 + 2.1 * len(panels))
        for axes, (title, lines) in zip(drawn, panels.items(), strict=True):
            for role in ORDER:
                if role in lines:
                    axes.plot(
                        list(lines[role]), list(lines[role].values()), color=COLOURS[role],
                        linestyle=DASHES[role], marker=MARKERS[role], markersize=4.5,
                        linewidth=1.5, label=NAMES[role],
                    )  # fmt: skip
            counts = sorted({count for line in lines.values() for count in line})
            axes.set_xscale("log")
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
            axes.set_ylim(-0.03, 1.03)
            axes.set_title(title)
            axes.set_ylabel("accuracy")
            soft_grid(axes)
        drawn[-1].set_xlabel("samples of each class that the attacker has")
        legend_above(figure, drawn[0])
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw the curves that probes and prototypes left in the record.

    Raises:
        Missing: neither was run.
    """
    del evidence
    panels = {title: _lines(record, slug) for slug, title in SOURCES.items()}
    panels = {title: lines for title, lines in panels.items() if "unlearned" in lines}
    if not panels:
        raise Missing("needs a linear probe or a prototype attack, and neither was run")
    told = "; ".join(
        f"{title} with {min(lines['unlearned'])} samples a class: "
        f"{lines['unlearned'][min(lines['unlearned'])]:.0%} after"
        for title, lines in panels.items()
    )
    return Picture(
        "few-shot", "How few samples bring the class back",
        "Accuracy on unseen samples of the forgotten classes when an attacker rebuilds the last "
        "layer from a few labelled samples. Only what lies above the retrained model is left over "
        "from training: any features recover a class from many samples.",
        told, few_shot_figure(panels), ("attack", "model", "samples", "accuracy"),
        [(title, role, count, value) for title, lines in panels.items()
         for role, line in lines.items() for count, value in line.items()],
    )  # fmt: skip


def _lines(record: Record, slug: str) -> dict[str, dict[int, float]]:
    entry = record.find(slug)
    lines: dict[str, dict[int, float]] = {}
    for count, found in mapping_in(entry.details.get("curve") if entry else None).items():
        for role, value in mapping_in(mapping_in(found).get("forgotten")).items():
            number = number_in(value)
            if number is not None and str(count).isdecimal():
                lines.setdefault(role, {})[int(count)] = number
    return {role: dict(sorted(line.items())) for role, line in lines.items()}
