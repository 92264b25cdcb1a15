"""The class table on a few digits: every column, resumed instead of run again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from forgetkit.benchmark import table
from forgetkit.benchmark.__main__ import app
from forgetkit.benchmark.datasets import digits
from forgetkit.benchmark.scoring import CountedReads, js_divergence, us_gap
from forgetkit.benchmark.train import RECIPES, TrainRecipe
from forgetkit.errors import BadHyperparameter, UnknownMethod
from forgetkit.losses import unlearning_score
from forgetkit.method import all_cards, find


@pytest.mark.slow
def test_the_table_has_every_column_and_runs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    quick = TrainRecipe(epochs=1, lr=1e-3, optimizer="adamw", weight_decay=0.0)
    monkeypatch.setitem(RECIPES, "vit", quick)
    data = digits().limited(200, 100)
    entries = (
        *table.ENTRIES[:3],
        table.Entry("neggrad", "neggrad", {"epochs": 1}),
        table.Entry("finetune", "finetune", {"epochs": 1}, "train"),
    )
    rows = table.class_table("vit", data, "digits-200", entries=entries, seeds=(0, 1))
    by_title = {row["title"]: row for row in rows}
    assert by_title["original"]["runs"] == 1
    assert by_title["neggrad"]["runs"] == 2
    assert by_title["retrained"]["JS_tr"] == pytest.approx(0.0, abs=1e-9)
    assert by_title["original"]["JS_tf"] > 0.0
    gaps = [by_title["retrained"][name] for name in ("US_gap", "US_gap_low", "US_gap_high")]
    assert gaps == [0.0, 0.0, 0.0]
    wanted = by_title["neggrad"]["US"] - by_title["retrained"]["US"]
    assert by_title["neggrad"]["US_gap"] == pytest.approx(wanted, abs=1e-9)
    assert by_title["neggrad"]["reads_r"] == 0.0
    assert by_title["finetune"]["reads_r"] >= 1.0

    def never(*_: object) -> dict[str, float]:
        raise AssertionError("a run in the cache was made again")

    monkeypatch.setattr(table, "run_entry", never)
    again = table.class_table("vit", data, "digits-200", entries=entries, seeds=(0, 1))
    assert again == rows
    text = table.markdown(rows)
    assert len(text.splitlines()) == 2 + len(rows)
    assert "±" in text
    assert "| 0.0000 [0.0000, 0.0000] |" in text


def test_runs_from_before_a_column_was_there_leave_it_empty() -> None:
    runs = [dict.fromkeys((c for c in table.COLUMNS if c != "US_gap"), x) for x in (1.0, 3.0)]
    text = table.markdown([table.row_of("old", runs)])
    assert "| 2.0000 ± 1.4142 | - | 2.0000 ± 1.4142 |" in text


def test_no_run_begins_after_the_time_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    assert table.class_table("vit", digits(), "digits", minutes=-1.0) == []


def test_every_class_method_has_a_row() -> None:
    wanted = {card.slug for card in all_cards() if "classes" in card.goals} - {"retrain", "lau"}
    assert {entry.method for entry in table.every_class_method()} == wanted


def test_chosen_methods_stand_behind_the_yardsticks() -> None:
    rows = table.chosen_entries(methods=["su", "lau"], without=["lau"])
    assert rows == (*table.YARDSTICKS, table.Entry(find("su").card.title, "su"))
    assert [e.title for e in table.chosen_entries(methods=["lau"])[3:]] == [
        "lau", "lau, without double softmax", "lau, 10 % of D_f", "lau, full PGD",
    ]  # fmt: skip
    assert table.chosen_entries() == table.ENTRIES
    everything = {entry.method for entry in table.chosen_entries(every=True)}
    assert everything >= {card.slug for card in all_cards() if "classes" in card.goals} - {
        "retrain"
    }


def test_methods_without_a_row_are_refused() -> None:
    with pytest.raises(UnknownMethod, match="suli"):
        table.chosen_entries(methods=["sulli"])
    for name in ("retrain", "correct"):
        with pytest.raises(BadHyperparameter, match=f"found {name}"):
            table.chosen_entries(methods=["su", name])


def test_settings_reach_the_rows_of_their_method_and_their_titles() -> None:
    chosen = table.chosen_entries(methods=["lau", "linear_filtration"])
    assert table.settable(chosen) == ["linear_filtration", "lau"]
    given: dict[str, dict[str, object]] = {
        "lau": {"epochs": 2, "alpha": 0.3},
        "linear_filtration": {"form": "zeroing"},
    }
    rows = table.with_settings(chosen, given)
    assert rows[:3] == table.YARDSTICKS  # the mask is linear filtration, too
    assert rows[3].hyperparameters == {"form": "zeroing"}
    assert rows[4].title == "lau, alpha=0.3, epochs=2"
    assert rows[5].hyperparameters == {"double_softmax": False, "epochs": 2, "alpha": 0.3}
    assert table.with_settings(chosen, {}) == chosen


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("su.epochs=2", "METHOD.NAME=VALUE"),
        ("lau", "METHOD.NAME=VALUE"),
        ("lau.epochs=0", "epochs must be"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(
    word: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    words = ["table", "--data", "digits", "--model", "resnet18", "--method", "lau", "--set", word]
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    assert says in result.output
    assert list(tmp_path.iterdir()) == []


def test_reads_are_counted_as_passes() -> None:
    data = digits().limited(50).train
    counted = CountedReads(data, 3)
    for _ in range(2):
        for index in range(len(counted)):
            counted[index]
    assert counted.passes() == {"reads_f": 2.0, "reads_r": 2.0}


def test_the_divergence_is_zero_to_itself_and_log_two_when_disjoint() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log()
    reference = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]).log()
    assert js_divergence(logits, logits) == pytest.approx(0.0, abs=1e-12)
    assert js_divergence(logits, reference) == pytest.approx(0.029540, abs=1e-5)
    apart = torch.tensor([[100.0, 0.0]])
    assert js_divergence(apart, apart.flip(1)) == pytest.approx(0.693147, abs=1e-5)


def test_the_gap_to_the_retrained_model_is_paired_by_image() -> None:
    own = torch.arange(1000) >= 900
    reference = (torch.arange(1000) % 10 != 0).double() * ~own
    right = reference.clone()
    right[1] = 0.0  # one kept image of 900 is lost
    found = us_gap(right, reference, own)
    wanted = unlearning_score(809 / 900, 0.0) - unlearning_score(810 / 900, 0.0)
    assert found["US_gap"] == pytest.approx(wanted, abs=1e-9)
    # The lost image is drawn a Poisson number of times with mean 1: 0 to 3 in 95 % of the draws.
    # Unpaired, the noise of the other 90 misses would be 17 times as wide.
    assert found["US_gap_high"] == 0.0
    assert 2.5 * wanted >= found["US_gap_low"] >= 3.5 * wanted
    back = us_gap(reference, right, own)
    assert back["US_gap_low"] == pytest.approx(-found["US_gap_high"], abs=1e-12)
    assert back["US_gap_high"] == pytest.approx(-found["US_gap_low"], abs=1e-12)


def test_the_gap_sees_both_sets() -> None:
    own = torch.arange(300) >= 200
    reference = torch.ones(300).double() * ~own
    found = us_gap(torch.ones(300).double(), reference, own)  # nothing forgotten
    assert set(found.values()) == {found["US_gap"]}
    assert found["US_gap"] == pytest.approx(-0.5, abs=1e-9)


def test_the_command_refuses_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    found = CliRunner().invoke(app, ["table", "--data", "digits", "--method", "sulli"])
    assert (found.exit_code, found.stdout) == (2, "")
    assert "did you mean 'suli'" in found.stderr
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []
