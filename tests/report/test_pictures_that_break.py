"""Names that matplotlib would read as formulas, and pictures that cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest
from made import methods_runs, record

from forgetkit.auditing.evidence import Missing
from forgetkit.comparing import Comparison
from forgetkit.comparing import pictures as of_rows
from forgetkit.report import compare, page
from forgetkit.report.bars import bars_figure
from forgetkit.report.drawing import Picture, attempt, svg_of
from forgetkit.report.pictures import PICTURES
from forgetkit.report.pictures.radar import radar_figure
from forgetkit.report.record import read_record


@pytest.mark.parametrize("name", ["$_$", "5 $", r"a\$b$"])
def test_dollars_in_a_name_are_no_formula(name: str) -> None:
    assert f">{name}<" in svg_of(bars_figure({"after": {name: 0.5}}, "accuracy"))
    assert f">{name}<" in svg_of(radar_figure({name: [0.5, 0.5, 0.5]}, ("a", "b", "c")))


def at_once(*_: object, **__: object) -> Picture:
    raise ValueError("it broke\nfor some reason")


def when_drawn(*_: object) -> Picture:
    return Picture("late", "Late", "", "", bars_figure({"a": {"b": 0.5}}, "$_$"), ("a",), [("b",)])


@pytest.mark.parametrize("make", [at_once, when_drawn])
def test_a_picture_that_breaks_does_not_cost_the_others(
    make: Callable[..., Picture], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost, kept = "Accuracy by class", "All axes at once"
    monkeypatch.setattr(page, "PICTURES", {lost: make, kept: PICTURES[kept]})
    drawn = page.draw(read_record(record()))
    assert [picture.title for picture in drawn.pictures] == [kept]
    assert drawn.left_out[lost].startswith("an error stopped it: ValueError: ")
    text = page.write_report(record(), tmp_path).read_text(encoding="utf-8")
    assert str(escape(drawn.left_out[lost])) in text


def test_comparisons_lose_no_more_than_the_picture_that_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compare, "bars_figure", at_once)
    monkeypatch.setattr(of_rows, "bars_figure", at_once)
    text = compare.write_comparison([record("a"), record("b")], tmp_path).read_text("utf-8")
    assert "an error stopped it: ValueError: it broke" in text
    assert "pictures/radar.svg" in (tmp_path / "comparison.md").read_text("utf-8")
    drawn = of_rows.draw(Comparison(methods_runs()).rows())
    assert drawn.pictures
    assert drawn.left_out["Seconds"] == "an error stopped it: ValueError: it broke"


def test_what_is_missing_stays_a_plain_sentence() -> None:
    def missing() -> Picture:
        raise Missing("needs more")

    assert attempt(missing) == "needs more"
