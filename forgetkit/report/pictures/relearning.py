"""How fast the class comes back when training goes on with a few of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.report.drawing import (
    COLOURS,
    DASHES,
    GRID,
    NAMES,
    ORDER,
    Picture,
    legend_above,
    sheet,
    soft_grid,
    style,
)
from forgetkit.report.record import Record, mapping_in, number_in, numbers_in, sequence_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = {"reset": "head rows reset first", "as_is": "as it is", "head": "only the head trained"}


@dataclass(frozen=True)
class Band:
    """Several runs of one model.

    Args:
        steps: of training.
        middle: mean accuracy of the runs that were measured at that step.
        low: smallest of them.
        high: largest of them.
    """

    steps: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def relearning_figure(panels: Mapping[str, Mapping[str, Band]], target: float | None) -> Figure:
    """Draw accuracy on the forgotten classes over steps, one panel a form of the attack.

    Args:
        panels: by title, then by role.
        target: accuracy at which the class counts as back.
    """
    with style():
        figure, drawn = sheet(len(panels), 1, height=0.6 + 2.0 * len(panels))
        for axes, (title, bands) in zip(drawn, panels.items(), strict=True):
            for role in ORDER:
                if role in bands:
                    band = bands[role]
                    steps = [step + 1 for step in band.steps]  # step 0 has no place on a log axis
                    axes.plot(
                        steps, band.middle, color=COLOURS[role], linestyle=DASHES[role],
                        linewidth=1.6, label=NAMES[role], marker="o", markersize=2.2,
                    )  # fmt: skip
                    axes.fill_between(
                        steps, band.low, band.high, color=COLOURS[role], alpha=0.15, linewidth=0
                    )
            if target is not None:
                axes.axhline(target, color=GRID, linestyle=":", linewidth=1.2)
            axes.set_xscale("log")
            axes.set_ylim(-0.03, 1.03)
            axes.set_title(title)
            axes.set_ylabel("accuracy")
            soft_grid(axes)
        drawn[-1].set_xlabel("steps + 1")
        legend_above(figure, drawn[0])
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw the curves that the relearning attack left in the record.

    Raises:
        Missing: it was not run.
    """
    del evidence
    entry = record.find("relearning")
    if entry is None:
        told = next((e.note for e in record.findings if e.slug == "relearning" and e.note), "")
        raise Missing(told or "needs a relearning attack, which the record does not hold")
    table = mapping_in(entry.details.get("curves"))
    panels = {
        words: {
            role: band
            for role, runs in mapping_in(table.get(form)).items()
            if role in ORDER and (band := _band(runs)).steps
        }
        for form, words in FORMS.items()
    }
    panels = {words: bands for words, bands in panels.items() if "unlearned" in bands}
    if not panels:
        raise Missing("needs the curves of a relearning attack, which the record does not hold")
    return Picture(
        "relearning", "How fast the class comes back",
        "Accuracy on unseen samples of the forgotten classes while a few of their samples are "
        "trained on; bands run from the worst to the best repeat, the dotted line is where the "
        "class counts as back. A curve left of the retrained one: something was still there. As "
        "it is, the steps mostly show how far the head was pushed down.",
        f"Accuracy over training steps for {', '.join(panels)}",
        relearning_figure(panels, number_in(entry.details.get("target"))),
        ("form", "model", "steps", "mean", "low", "high"),
        [(words, role, *point) for words, bands in panels.items() for role, band in bands.items()
         for point in zip(band.steps, band.middle, band.low, band.high, strict=True)],
    )  # fmt: skip


def _band(runs: object) -> Band:
    """Return mean and range by step; a run that ended early holds its last value."""
    curves = []
    for run in sequence_in(runs):
        steps = numbers_in(mapping_in(run).get("steps"))
        heights = numbers_in(mapping_in(run).get("forgotten"))
        if steps and len(steps) == len(heights):
            curves.append(dict(zip(steps, heights, strict=True)))
    steps = sorted({step for curve in curves for step in curve})
    at = [[_held(curve, step) for curve in curves] for step in steps]
    return Band(
        steps, [sum(v) / len(v) for v in at], [min(v) for v in at], [max(v) for v in at]
    )  # fmt: skip


def _held(curve: Mapping[float, float], step: float) -> float:
    return curve[max((s for s in curve if s <= step), default=min(curve))]
