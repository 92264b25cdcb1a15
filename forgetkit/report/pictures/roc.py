"""How well a membership attack tells forgotten samples from unseen ones, at few false alarms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.report.drawing import COLOURS, DASHES, GRID, NAMES, ORDER, Picture, sheet, style
from forgetkit.report.record import Record, mapping_in, number_in, numbers_in
from forgetkit.report.sources import details_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]


def roc_figure(curves: Mapping[str, Curve], areas: Mapping[str, float], floor: float) -> Figure:
    """Draw ROC curves on logarithmic axes.

    Args:
        curves: by role, (false positive rates, true positive rates).
        areas: by role, area under the curve.
        floor: smallest rate that the number of samples can show; smaller ones are drawn there.
    """
    with style():
        figure, (axes,) = sheet(height=3.7)
        axes.plot([floor, 1], [floor, 1], color=GRID, linestyle="--", linewidth=1, label="guessing")
        for role in ORDER:
            if role in curves:
                false, true = ([max(rate, floor) for rate in rates] for rates in curves[role])
                axes.plot(
                    false, true, drawstyle="steps-post", color=COLOURS[role],
                    linestyle=DASHES[role], linewidth=1.7,
                    label=f"{NAMES[role]}, AUC {areas[role]:.3f}",
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(floor, 1)
        axes.set_ylim(floor, 1.05)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.grid(visible=True, which="major", color=GRID, alpha=0.35, linewidth=0.6)
        axes.legend(loc="lower right")
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw the loss attack on every model at hand.

    Raises:
        Missing: neither the record nor the evidence has the attack.
    """
    details = details_of(record, evidence, "mia_loss")
    curves = {role: _curve(found) for role, found in mapping_in(details.get("roc")).items()}
    curves = {role: curve for role, curve in curves.items() if role != "untrained" and curve[0]}
    areas = {role: number_in(area) for role, area in mapping_in(details.get("auc")).items()}
    known = {role: area for role, area in areas.items() if area is not None and role in curves}
    if "unlearned" not in known:
        raise Missing("needs the curve of the attack, which the record does not hold")
    drawn = {role: curves[role] for role in ORDER if role in known}
    entry = record.find("mia_loss")
    floor = _floor(drawn.values(), 0 if entry is None else entry.samples)
    told = ", ".join(f"{NAMES[role]} {known[role]:.3f}" for role in drawn)
    signal = str(details.get("signal") or "loss")
    count = f" {entry.samples} samples." if entry is not None and entry.samples else ""
    return Picture(
        "roc", "Membership attack by threshold",
        f"Forgotten against unseen samples of the same classes, told apart by the {signal}."
        f"{count} Both axes are logarithmic and end at the smallest rate that the samples can "
        "show. On the dashed line an attacker only guesses; the left edge is what few false "
        "alarms buy. Below the line the attack works when turned round.",
        f"ROC curves; area under the curve: {told}",
        roc_figure(drawn, known, floor),
        ("model", "false_positive_rate", "true_positive_rate"),
        [(role, *point) for role, curve in drawn.items() for point in zip(*curve, strict=True)],
    )  # fmt: skip


def _floor(curves: Iterable[Curve], samples: int) -> float:
    """Return the share of one sample in its group: half of them are members."""
    if samples >= 2:
        return 1 / (samples // 2)
    return min(rate for false, true in curves for rate in (*false, *true) if rate > 0)


def _curve(found: object) -> Curve:
    table = mapping_in(found)
    false, true = numbers_in(table.get("false")), numbers_in(table.get("true"))
    return (false, true) if len(false) == len(true) else ([], [])
