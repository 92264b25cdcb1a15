"""``forgetkit methods`` with a goal and the data at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeAlias

import pytest
from typer.testing import Result

from forgetkit.choosing import artefacts, known_artefacts
from forgetkit.method import all_methods, find

Invoke: TypeAlias = Callable[..., Result]


def listed(done: Result) -> set[str]:
    assert done.exit_code == 0, done.output
    return {entry["slug"] for entry in json.loads(done.stdout)["methods"]}


@pytest.mark.parametrize("goal", ["classes", "instances", "relabel", "depoison"])
def test_a_goal_leaves_the_methods_that_serve_it(invoke: Invoke, goal: str) -> None:
    expected = {m.card.slug for m in all_methods() if goal in m.card.goals} - {"amnesiac"}
    assert listed(invoke("methods", "--for", goal, "--json")) == expected


def test_without_retain_leaves_what_needs_none(invoke: Invoke) -> None:
    found = listed(invoke("methods", "--for", "classes", "--without-retain", "--json"))
    assert {"lau", "neggrad"} <= found
    assert not {"finetune", "scrub", "pgu", "amnesiac"} & found
    for slug in found:
        assert "retain" not in find(slug)().needs


def test_files_at_hand_add_what_takes_them(invoke: Invoke) -> None:
    words = ("methods", "--for", "instances", "--json")
    without = listed(invoke(*words, "--without-retain"))
    more = listed(invoke(*words, "--without-retain", "--with-statistics"))
    assert without < more
    assert "pgu" in more
    assert all(hasattr(find(slug)(), "statistics") for slug in more - without)
    assert listed(invoke(*words, "--with-log")) == listed(invoke(*words)) | {"amnesiac"}


def test_every_file_that_a_method_takes_can_be_said_to_be_at_hand(invoke: Invoke) -> None:
    options = {"statistics": "--with-statistics", "log": "--with-log"}
    options["importance_file"] = "--with-importance"
    assert set(options) == known_artefacts()
    for file, option in options.items():
        found = listed(invoke("methods", option, "--json"))
        assert {m.card.slug for m in all_methods() if file in artefacts(m)} <= found
    found = listed(invoke("methods", "--without-retain", "--with-importance", "--json"))
    assert {"ssd", "lfssd", "assd"} <= found
    assert not {"ssd", "pgu"} & listed(invoke("methods", "--without-retain", "--json"))


def test_the_table_says_goals_needs_edits_cost_and_source(invoke: Invoke) -> None:
    done = invoke("methods", "--for", "depoison")
    for title in ("goals", "needs", "edits", "cost", "source"):
        assert title in done.stdout
    assert "pgu" in done.stdout
    assert "Hoang" in done.stdout
    assert "lau" not in done.stdout


def test_one_record_has_no_settings_of_tests(invoke: Invoke) -> None:
    record = json.loads(invoke("methods", "amnesiac", "--json").stdout)
    assert not {"toy", "probe", "rehearse"} & set(record)
    assert record["wants"] == ["forget", "retain", "log file"]
    assert record["rank"] == {"instances": 1}
    assert "log file" in invoke("methods", "amnesiac").stdout


def test_an_unknown_goal_is_a_sentence(invoke: Invoke) -> None:
    done = invoke("methods", "--for", "class")
    assert done.exit_code == 2
    assert "classes, instances, relabel, depoison" in done.stderr


def test_nothing_that_fits_is_said(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetkit.cli import methods

    monkeypatch.setattr(methods, "all_methods", lambda: [find("lau")])
    done = invoke("methods", "--for", "relabel")
    assert done.exit_code == 0
    assert "No registered method fits" in done.stdout
