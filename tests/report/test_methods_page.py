"""The page of a comparison of methods: its pictures, their numbers, and what is left out."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made import methods_runs
from matplotlib.container import BarContainer

from forgetkit.comparing import Comparison
from forgetkit.comparing.pictures import draw
from forgetkit.report.bars import bars_figure
from forgetkit.report.drawing import Picture


def pictures() -> dict[str, Picture]:
    return {picture.slug: picture for picture in draw(Comparison(methods_runs()).rows()).pictures}


def test_every_target_has_its_pictures_and_all_share_two() -> None:
    drawn = draw(Comparison(methods_runs()).rows())
    assert [picture.slug for picture in drawn.pictures] == [
        "accuracy-classes-3-dress", "tradeoff-classes-3-dress", "radar-classes-3-dress",
        "accuracy-classes-5-8", "tradeoff-classes-5-8", "radar-classes-5-8", "score", "seconds",
    ]  # fmt: skip
    assert drawn.left_out == {}


def test_the_numbers_are_those_of_the_table() -> None:
    found = pictures()
    accuracy = {row[:2]: row[2:] for row in found["accuracy-classes-3-dress"].rows}
    assert accuracy["to forget, test", "lau"] == pytest.approx((0.02, 0.04 / 2**0.5))
    assert accuracy["kept, training", "original"] == (0.99, "")
    assert accuracy["kept, training", "a <b> | c"] == (0.95, "")  # one seed of two has no spread
    points = {row[0]: row[1:] for row in found["tradeoff-classes-5-8"].rows}
    assert points["lau"] == pytest.approx((0.02, 0.04 / 2**0.5, 0.9, 0.0))
    assert points["original"] == pytest.approx((0.94, 0.0, 0.92, 0.0))
    polygons = {row[0]: row[1:] for row in found["radar-classes-3-dress"].rows}
    assert polygons["original"] == pytest.approx((0.99, 0.92, 0.02, 0.06, 0.46, ""))
    # lau takes 2.5 s, the other one 2 s: speed is one half at 2.25 s.
    assert polygons["lau"] == pytest.approx((0.95, 0.9, 0.99, 0.98, 0.92, 2.25 / 4.75))
    seconds = {row[:2]: row[2] for row in found["seconds"].rows}
    assert seconds["classes 5, 8", "lau"] == 2.5
    assert ("classes 5, 8", "original") not in seconds  # it took no time


def test_bars_are_as_long_as_the_means_and_whiskers_as_the_deviations() -> None:
    figure = bars_figure({"one": {"a": 0.5, "b": 0.25}}, "share", spread={"one": {"b": 0.125}})
    (bars,) = (c for c in figure.axes[0].containers if isinstance(c, BarContainer))
    assert [patch.get_width() for patch in bars.patches] == [0.5, 0.25]
    assert bars.errorbar is not None
    (whiskers,) = bars.errorbar.lines[2]
    spans = [segment[:, 0] for segment in whiskers.get_segments() if len(segment)]
    assert [list(span) for span in spans if span[0] == span[0]] == [[0.125, 0.375]]


def test_single_samples_have_no_score_and_the_page_says_so() -> None:
    runs = tuple(
        replace(
            run,
            target="instances 3, 7",
            scores={k: v for k, v in run.scores.items() if k not in ("D_tf", "US")},
        )
        for run in methods_runs()[:4]
    )
    drawn = draw(Comparison(runs).rows())
    assert [picture.slug for picture in drawn.pictures] == [
        "accuracy-instances-3-7", "tradeoff-instances-3-7", "seconds",
    ]  # fmt: skip
    assert drawn.pictures[1].columns[1] == "D_f"
    assert "low is not best" in drawn.left_out["All columns at once: instances 3, 7"]
    assert drawn.left_out["Unlearning score"] == "no row has a figure in the column US"


@pytest.mark.slow
def test_more_rows_or_targets_than_colours_are_said_to_be_left_out() -> None:
    some = methods_runs()[1]
    many = tuple(replace(some, title=f"method {number}") for number in range(10))
    radar = next(p for p in draw(Comparison(many).rows()).pictures if p.slug.startswith("radar"))
    assert len(radar.rows) == 8
    assert radar.caption.endswith("The first 8 of 10 rows.")
    drawn = draw(Comparison(tuple(replace(some, target=f"classes {n}") for n in range(9))).rows())
    assert drawn.left_out["Targets"] == "the last pictures show the first 8 of 9"
    score = next(picture for picture in drawn.pictures if picture.slug == "score")
    assert len(score.rows) == 8


def test_targets_that_begin_alike_have_files_of_their_own() -> None:
    some = methods_runs()[1]
    long = [replace(some, target="classes " + "1, " * 20 + end) for end in ("7", "8")]
    slugs = [picture.slug for picture in draw(Comparison(tuple(long)).rows()).pictures]
    assert len(set(slugs)) == len(slugs) == 6  # one row has no trade-off


def test_the_page_needs_no_other_file_and_its_words_are_escaped(tmp_path: Path) -> None:
    table = Comparison(methods_runs())
    files = table.save(tmp_path)
    assert all(file.stat().st_size for file in files)
    assert {file.name for file in tmp_path.rglob("*.*")} == {file.name for file in files}
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("<figure") == 8
    assert "a &lt;b&gt; | c" in page
    assert "it broke at &lt;step&gt; 3" in page
    assert "<b>" not in page
    assert "2 methods, 2 targets, 2 seeds" in page
    assert "1.00 ± 1.41" in page
    assert "0" * 64 in page
    rows = csv.reader(io.StringIO((tmp_path / "pictures" / "score.csv").read_text("utf-8")))
    assert next(rows) == ["target", "method", "mean", "deviation"]
    assert [row[:2] for row in rows][:2] == [
        ["classes 3 (Dress)", "original"], ["classes 3 (Dress)", "lau"],
    ]  # fmt: skip


@pytest.mark.slow
def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        Comparison(methods_runs()).save(tmp_path / folder)
    for file in (tmp_path / "a").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
