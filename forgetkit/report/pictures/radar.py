"""One polygon a model over axes on which 1 is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.auditing.readings import MARK
from forgetkit.report.drawing import GRID, PALETTE, Picture, plain, sheet, style
from forgetkit.report.record import Record, mapping_in, number_in
from forgetkit.report.sources import is_masked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = (
    "kept\naccuracy", "1 - forgotten\naccuracy", "US", "1 - 2 FS", "agreement\nwith retrain",
    "1 - probe\nexcess", "1 - relearn\nindex", "speed",
)  # fmt: skip
"""In this order always: the area depends on it."""
STYLES = ("-", "--", ":", "-.")
FEWEST = 3


def radar_figure(
    polygons: Mapping[str, Sequence[float | None]], names: Sequence[str] = AXES
) -> Figure:
    """Draw polygons; a missing axis is a gap in the line, never 0.

    Args:
        polygons: by name, one value in [0, 1] an axis or ``None``.
        names: of the axes.
    """
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    with style():
        figure, (axes,) = sheet(height=4.5, polar=True)
        axes.set_theta_offset(math.pi / 2)  # type: ignore[attr-defined]  # polar axes
        axes.set_theta_direction(-1)  # type: ignore[attr-defined]  # polar axes
        for place, (name, values) in enumerate(polygons.items()):
            closed = [float("nan") if v is None else v for v in (*values, values[0])]
            axes.plot(
                [*angles, angles[0]], closed, color=PALETTE[place % len(PALETTE)],
                linestyle=STYLES[place % len(STYLES)], marker="o", markersize=3.5,
                linewidth=1.6, label=plain(name), clip_on=False,
            )  # fmt: skip
        axes.set_ylim(0, 1)
        axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["", ".5", "", "1"], color=GRID)
        axes.set_xticks(angles, names)
        axes.tick_params(axis="x", pad=11)
        axes.grid(visible=True, color=GRID, alpha=0.4, linewidth=0.6)
        axes.spines[:].set_color(GRID)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def scores(record: Record, *, reference_seconds: float | None = None) -> list[float | None]:
    """Return one value an axis, cut to [0, 1]; ``None`` where the record has none.

    Args:
        record: of one model.
        reference_seconds: a time whose speed is one half; retraining's, or the median of what is
            compared.
    """
    kept, gone = accuracy_on(record, "test_retain"), accuracy_on(record, "test_forget")
    us, fs = _value(record, "us"), _value(record, "forgetting_score")
    divergence = _value(record, "js")
    excess = probe_excess(record)
    seconds = seconds_of(record)
    speed = None
    if seconds is not None and reference_seconds:
        speed = 1 / (1 + seconds / reference_seconds)
    whole = [
        kept, None if gone is None else 1 - gone, us, None if fs is None else 1 - 2 * fs,
        None if divergence is None else 1 - divergence,
        None if excess is None else 1 - max(0.0, excess), _ease(record), speed,
    ]  # fmt: skip
    return [None if value is None else min(1.0, max(0.0, value)) for value in whole]


def _ease(record: Record) -> float | None:
    """Return how long relearning takes beside the retrained model, at most 1; ``None`` unknown.

    It is unknown when the retrained model never arrives: then there is nothing to divide by. A
    model that never arrives beside one that does takes the steps that were tried, or more.
    """
    entry = record.find("relearning")
    if entry is None:
        return None
    own = number_in(entry.details.get("cap") if entry.value == "inf" else entry.value)
    other = entry.control("retrained")
    return None if own is None or not other else min(1.0, own / other)


def probe_excess(record: Record) -> float | None:
    """Return what a few-shot probe recovers beyond the mean of retrained models, or ``None``."""
    entry = record.find("linear_probe")
    if entry is None:
        return None
    curve = mapping_in(entry.details.get("curve"))
    return number_in(mapping_in(curve.get(str(entry.settings.get("shots")))).get("excess"))


def accuracy_on(record: Record, split: str, role: str = "unlearned") -> float | None:
    """Return a model's accuracy on a set in [0, 1], or ``None``."""
    entry = record.find("accuracy")
    table = mapping_in(mapping_in(entry.details.get("sets") if entry else None).get(split))
    return number_in(mapping_in(table.get("accuracy")).get(role))


def seconds_of(record: Record) -> float | None:
    """Return the seconds that the unlearning took, or ``None``: an audit's own do not count."""
    return number_in(mapping_in(record.facts.get("times")).get("unlearning"))


def polygons(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """Return the values of several records by name; speed is relative to their median time."""
    times = [t for record in records if (t := seconds_of(record)) is not None]
    middle = median(times) if len(times) > 1 else None
    return {record.name: scores(record, reference_seconds=middle) for record in records}


def picture_of(records: Sequence[Record]) -> Picture:
    """Draw several records in one radar.

    Raises:
        Missing: no record has three of the axes.
    """
    found = {
        name: values for name, values in polygons(records).items()
        if sum(value is not None for value in values) >= FEWEST
    }  # fmt: skip
    if not found:
        raise Missing(f"needs {FEWEST} of the axes {', '.join(AXES)}".replace("\n", " "))
    words = [axis.replace("\n", " ") for axis in AXES]
    masked = [record.name for record in records if record.name in found and is_masked(record, None)]
    mark = (
        f" {words[1]} and {words[2]} rest on a forgotten accuracy of 0 by construction ({MARK}): "
        f"{', '.join(masked)}."
        if masked
        else ""
    )
    return Picture(
        "radar", "All axes at once",
        "1 is best on every axis: agreement is 1 minus the Jensen-Shannon divergence in bits, the "
        "relearn index 1 minus the steps to relearn over those of the retrained model. A gap is an "
        "axis that was not measured, or whose retrained model never relearnt. "
        f"The area depends on the order of the axes and means nothing.{mark}",
        "Radar chart: " + "; ".join(
            f"{_marked(name, masked)}: " + ", ".join(
                f"{axis} {value:.2f}" for axis, value in zip(words, values, strict=True)
                if value is not None
            ) for name, values in found.items()
        ),
        radar_figure({_marked(name, masked): values for name, values in found.items()}),
        ("name", *words),
        [(_marked(name, masked), *("" if v is None else v for v in values))
         for name, values in found.items()],
    )  # fmt: skip


def _marked(name: str, masked: Sequence[str]) -> str:
    return f"{name} ({MARK})" if name in masked else name


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw one record.

    Raises:
        Missing: the record has fewer than three of the axes.
    """
    del evidence
    return picture_of([record])


def _value(record: Record, *slugs: str) -> float | None:
    entry = record.find(*slugs)
    return None if entry is None else entry.number
