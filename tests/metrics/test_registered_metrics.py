"""Every registered metric says what its page needs, and says it truly where that can be checked."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from forgetkit.fields import bounds_of
from forgetkit.metric import Metric, all_metrics, find_metric

INTERVAL_AND_UNIT = re.compile(
    r"^\[-?[\d.]+, ([\d.]+|infinity|cap|log classes)[\])](:|,| for) \w.*$"
)


def every_metric() -> list[object]:
    return [pytest.param(metric, id=metric.card.slug) for metric in all_metrics()]


def test_there_are_metrics_of_every_part() -> None:
    assert len(all_metrics()) >= 39
    assert {m.card.group for m in all_metrics()} == {
        "accuracy", "score", "distribution", "representation", "attack", "audit",
    }  # fmt: skip


@pytest.mark.parametrize("metric", every_metric())
def test_the_card_is_complete(metric: type[Metric]) -> None:
    card = metric.card
    for name, text in dataclasses.asdict(card).items():
        assert str(text).strip(), name
    assert metric.__module__ == f"forgetkit.metrics.{card.slug}"
    assert find_metric(card.slug) is metric
    assert INTERVAL_AND_UNIT.match(card.range), card.range
    for sentence in (card.about, card.bad):
        assert sentence[0].isupper() or sentence[0].isdigit()
        assert sentence.endswith(".")
        assert ". " not in sentence, "one sentence"
    assert re.search(r"\b(19|20)\d\d\b", card.source), "the source has no year"
    assert card.link.startswith("https://")


@pytest.mark.parametrize("metric", every_metric())
def test_the_docstring_has_formula_verdict_source_and_differences(metric: type[Metric]) -> None:
    text = inspect.cleandoc(metric.__doc__ or "")
    paragraphs = text.split("\n\n")
    assert any(p.startswith("    ") and re.search("=|<-", p) for p in paragraphs), "no formula"
    for section in ("Verdict:", "Source:", "Differences:"):
        assert sum(p.startswith(section) for p in paragraphs) == 1, section


@pytest.mark.parametrize("metric", every_metric())
def test_a_verdict_is_promised_where_one_is_given(metric: type[Metric]) -> None:
    promised = "Verdict: none;" not in (metric.__doc__ or "")
    module = inspect.getmodule(metric)
    assert module is not None
    assert promised == bool(re.search(r"verdict=|distance_finding\(", inspect.getsource(module)))


@pytest.mark.parametrize("metric", every_metric())
def test_every_setting_says_what_it_is(metric: type[Metric]) -> None:
    for declared in dataclasses.fields(metric):
        assert len(bounds_of(declared).about) > 5, declared.name
