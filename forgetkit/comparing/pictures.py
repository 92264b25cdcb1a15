"""Pictures of a comparison: accuracies, what keeping costs, all columns at once, score, time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.readings import MARK
from forgetkit.comparing.table import Row
from forgetkit.comparing.tradeoff import tradeoff_figure
from forgetkit.comparing.written import digest
from forgetkit.report.bars import bars_figure
from forgetkit.report.drawing import Picture, attempt
from forgetkit.report.page import Drawn
from forgetkit.report.pictures.radar import FEWEST, radar_figure

SETS = {
    "D_r": "kept, training", "D_f": "to forget, training", "D_tr": "kept, test",
    "D_tf": "to forget, test",
}  # fmt: skip
AXES = ("D_r", "D_tr", "1 - D_f", "1 - D_tf", "US", "speed")
MOST = 8
"""Colours that one picture can tell apart."""


def draw(rows: Sequence[Row]) -> Drawn:
    """Draw everything that the rows of a comparison allow, target by target."""
    pictures: list[Picture] = []
    left_out: dict[str, str] = {}
    targets: dict[str, list[Row]] = {}
    for row in rows:
        targets.setdefault(row.target, []).append(row)
    for target, found in targets.items():
        measured = [row for row in found if row.runs]
        for title, picture in (
            ("Accuracy by set", _accuracy), ("Forgetting and keeping", _tradeoff),
            ("All columns at once", _radar),
        ):  # fmt: skip
            made = attempt(partial(_titled, title, picture, target, measured))
            if isinstance(made, str):
                left_out[f"{title}: {target}"] = made
            else:
                pictures.append(made)
    if len(targets) > MOST:
        left_out["Targets"] = f"the last pictures show the first {MOST} of {len(targets)}"
    some = {target: targets[target] for target in list(targets)[:MOST]}
    for title, picture_of in (("Unlearning score", _score), ("Seconds", _seconds)):
        made = attempt(partial(picture_of, some))
        if isinstance(made, str):
            left_out[title] = made
        else:
            pictures.append(made)
    return Drawn(pictures, left_out)


def _titled(
    title: str, picture: Callable[[str, Sequence[Row]], Picture], target: str, rows: Sequence[Row]
) -> Picture:
    """Return a picture of a target with its title, and what it cannot show of masked heads."""
    made = picture(target, rows)
    caption = made.caption + _masked_words(rows)
    return replace(made, title=f"{title}: {target}", caption=caption)


def _masked_words(rows: Sequence[Row]) -> str:
    """Return the sentence about rows whose head is masked, or nothing."""
    names = [row.title for row in rows if row.head_masked]
    return f" D_f and D_tf 0 by construction ({MARK}): {', '.join(names)}." if names else ""


def _accuracy(target: str, rows: Sequence[Row]) -> Picture:
    mean, spread = (
        {
            words: {
                row.title: getattr(row, kind)[column] / 100
                for row in rows
                if column in getattr(row, kind)
            }
            for column, words in SETS.items()
        }
        for kind in ("mean", "deviation")
    )
    mean = {words: line for words, line in mean.items() if line}
    if not mean:
        raise Missing("no run of it ended with figures")
    return Picture(
        _slug("accuracy", target), "", "Mean over seeds, with the standard deviation where there "
        "are several. Kept samples should stay where the original has them; for classes low is "
        "what was asked for, for single samples the accuracy of a model that never saw them is.",
        _told("Bars of accuracy", mean), bars_figure(mean, "accuracy", spread=spread),
        ("set", "method", "mean", "deviation"), _cells(mean, spread),
    )  # fmt: skip


def _tradeoff(target: str, rows: Sequence[Row]) -> Picture:
    on_test = any("D_tf" in row.mean and "D_tr" in row.mean for row in rows)
    gone, kept = ("D_tf", "D_tr") if on_test else ("D_f", "D_r")
    found = [row for row in rows if gone in row.mean and kept in row.mean]
    if len(found) < 2:
        raise Missing("needs accuracies on kept samples and on samples to forget, of two rows")
    points = {
        row.title: tuple(
            (row.mean[column] / 100, row.deviation.get(column, 0.0) / 100)
            for column in (gone, kept)
        )
        for row in found
    }
    words = "test" if on_test else "training"
    return Picture(
        _slug("tradeoff", target), "", f"Accuracy on {words} samples, mean over seeds; the lines "
        "are the standard deviation. For classes the best place is the upper left corner.",
        "Points: " + "; ".join(
            f"{name}: to forget {x:.0%}, kept {y:.0%}" for name, ((x, _), (y, _)) in points.items()
        ),
        tradeoff_figure(points, f"accuracy, to forget, {words}", f"accuracy, kept, {words}"),
        ("method", gone, f"{gone} deviation", kept, f"{kept} deviation"),
        [(name, *x, *y) for name, (x, y) in points.items()],
    )  # fmt: skip


def _radar(target: str, rows: Sequence[Row]) -> Picture:
    if not any("US" in row.mean for row in rows):
        raise Missing(
            "needs the unlearning score, so classes and test data: for single samples low is not "
            "best"
        )
    times = [row.mean["seconds"] for row in rows if row.mean.get("seconds")]
    usual = median(times) if times else None
    polygons = {row.title: _values(row.mean, usual) for row in rows[:MOST]}
    polygons = {
        name: values
        for name, values in polygons.items()
        if sum(value is not None for value in values) >= FEWEST
    }
    if not polygons:
        raise Missing(f"needs {FEWEST} of the columns")
    cut = f" The first {MOST} of {len(rows)} rows." if len(rows) > MOST else ""
    return Picture(
        _slug("radar", target), "", "1 is best on every axis; speed is 0.5 for the median time of "
        "the methods. A gap is an axis that was not measured. The area depends on the order of the "
        f"axes and means nothing.{cut}",
        "Radar chart: " + "; ".join(
            f"{name}: " + ", ".join(
                f"{axis} {value:.2f}" for axis, value in zip(AXES, values, strict=True)
                if value is not None
            ) for name, values in polygons.items()
        ),
        radar_figure(polygons, AXES), ("method", *AXES),
        [(name, *("" if v is None else v for v in values)) for name, values in polygons.items()],
    )  # fmt: skip


def _values(mean: Mapping[str, float], usual: float | None) -> list[float | None]:
    """Return one value in [0, 1] an axis; the original, which took no time, has no speed."""
    shares = {column: mean[column] / 100 for column in SETS if column in mean}
    lost = [1 - shares[column] if column in shares else None for column in ("D_f", "D_tf")]
    seconds = mean.get("seconds")
    speed = 1 / (1 + seconds / usual) if seconds and usual else None
    return [shares.get("D_r"), shares.get("D_tr"), *lost, mean.get("US"), speed]


def _score(targets: Mapping[str, Sequence[Row]]) -> Picture:
    mean, spread = _column(targets, "US")
    return Picture(
        "score", "Unlearning score", "Mean over seeds, with the standard deviation where there are "
        "several; higher is better, and a model that forgot nothing has about half.",
        _told("Bars", mean), bars_figure(mean, "unlearning score", spread=spread),
        ("target", "method", "mean", "deviation"), _cells(mean, spread),
    )  # fmt: skip


def _seconds(targets: Mapping[str, Sequence[Row]]) -> Picture:
    mean, spread = _column(targets, "seconds")
    return Picture(
        "seconds", "Seconds", "Mean wall time of a run without measuring, on a logarithmic axis. "
        "Times compare only if the machine did nothing else, and runs side by side slow each other "
        "down.",
        _told("Bars", mean), bars_figure(mean, "seconds", spread=spread, logarithmic=True),
        ("target", "method", "mean", "deviation"), _cells(mean, spread),
    )  # fmt: skip


Table = dict[str, dict[str, float]]


def _column(targets: Mapping[str, Sequence[Row]], column: str) -> tuple[Table, Table]:
    """Return mean and deviation of a column by target and row; what took no time is left out."""
    mean, spread = (
        {
            target: {
                row.title: getattr(row, kind)[column]
                for row in rows
                if getattr(row, kind).get(column) and row.mean[column]
            }
            for target, rows in targets.items()
        }
        for kind in ("mean", "deviation")
    )
    mean = {target: row for target, row in mean.items() if row}
    if not mean:
        raise Missing(f"no row has a figure in the column {column}")
    return mean, spread


def _cells(mean: Table, spread: Table) -> list[tuple[str, str, float, float | str]]:
    return [
        (name, line, value, spread.get(name, {}).get(line, ""))
        for name, row in mean.items()
        for line, value in row.items()
    ]


def _told(what: str, table: Table) -> str:
    return f"{what}: " + "; ".join(
        f"{name}: " + ", ".join(f"{line} {value:.3g}" for line, value in row.items())
        for name, row in table.items()
    )


def _slug(what: str, target: str) -> str:
    """Return a file name; targets that are cut off are told apart by a few more letters."""
    words = re.sub(r"[^a-z0-9]+", "-", target.lower()).strip("-")
    return f"{what}-{words}" if len(words) <= 40 else f"{what}-{words[:40]}-{digest(target)[:6]}"
