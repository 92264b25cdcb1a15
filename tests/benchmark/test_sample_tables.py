"""The tables about samples on a few digits: figures, resuming, what no run may read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from forgetkit.benchmark import depoison, incremental, instances, relabel, store, train, zoo
from forgetkit.benchmark.__main__ import app
from forgetkit.benchmark.datasets import digits
from forgetkit.benchmark.store import Record, Setting
from forgetkit.benchmark.train import TrainRecipe
from forgetkit.errors import DataError
from forgetkit.method import find
from forgetkit.statistics import Statistics

RECIPE = TrainRecipe(epochs=5, lr=0.05, optimizer="sgd", weight_decay=0.0, batch_size=32)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    build = partial(zoo.build_small_vgg, width=4)
    return Setting("vgg", build, RECIPE, digits().limited(160, 80), "digits-160")


def never(*_: object) -> Record:
    raise AssertionError("a run in the cache was made again")


def test_positions_are_drawn_once_each_and_left_out() -> None:
    positions = store.drawn(20, 100, 3)
    assert len(positions.unique()) == 20
    assert positions.equal(store.drawn(20, 100, 3))
    assert not positions.equal(store.drawn(20, 100, 4))
    data = digits().train.where(torch.arange(100))
    rest = store.without(data, positions)
    assert len(rest) == 80
    kept = [number for number in range(100) if number not in positions.tolist()]
    assert rest.images.equal(data.images[kept])


def test_markdown_shows_deviations_and_gaps() -> None:
    rows = [
        store.row(("a",), [{"a": 1.0}, {"a": 3.0}], method="x"),
        store.row(("a",), [{"a": 2.0}], method="y"),
        store.row(("a",), [{}], method="z"),
    ]
    assert store.markdown(("method",), ("a",), rows).splitlines() == [
        "| method | a |",
        "| --- | ---: |",
        "| x | 2.00 ± 1.41 |",
        "| y | 2.00 |",
        "| z | - |",
    ]


def test_a_failed_run_is_a_gap_and_tried_again(setting: Setting) -> None:
    calls = []

    def fails() -> Record:
        calls.append(1)
        raise DataError("nothing to see")

    assert setting.run("x", fails) == {}
    assert setting.run("x", fails) == {}
    assert len(calls) == 2
    assert setting.run("x", lambda: {"a": 1.0}) == {"a": 1.0}
    assert setting.run("x", never) == {"a": 1.0}


def test_the_test_set_is_measured_on_the_half_that_no_method_sees(setting: Setting) -> None:
    halves = setting.held_out, setting.measured
    assert sum(map(len, halves)) == len(setting.data.test)
    both = torch.cat([half.images for half in halves]).flatten(1)
    assert len(both.unique(dim=0)) == len(setting.data.test.images.flatten(1).unique(dim=0))


def test_a_model_is_trained_on_exactly_the_set_and_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(model: object, data: object, *rest: object, **more: object) -> float:
        seen.append(len(data))  # type: ignore[arg-type]  # a data set
        return train.fit(model, data, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "fit", watched)
    part = setting.data.train.where(torch.arange(48))
    first, seconds = setting.model("some", part)
    again, same = setting.model("some", part)
    assert seen == [48]
    assert seconds == same > 0
    for name, value in first.state_dict().items():
        assert value.equal(again.state_dict()[name])


def test_every_method_for_samples_is_in_the_table() -> None:
    listed = instances.instance_methods()
    assert {"neggrad", "finetune", "pgu", "scrub"} <= set(listed)
    assert "amnesiac" not in listed  # needs a log
    assert "retrain" not in listed  # has a row of its own
    for slug in listed:
        assert "instances" in find(slug).card.goals


@pytest.mark.slow
def test_the_instance_table(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    quick: dict[str, dict[str, object]] = {
        "neggrad": {"epochs": 5, "lr": 0.1},
        "finetune": {"epochs": 1},
    }

    def table() -> list[dict[str, Any]]:
        return instances.instance_table(
            setting, sizes=(8, 16), methods=list(quick), seeds=(0, 1), hyperparameters=quick
        )

    rows = table()
    assert [(row["samples"], row["method"]) for row in rows[:4]] == [
        (8, "original"), (8, "retrained"), (8, "neggrad, epochs=5, lr=0.1"),
        (8, "finetune, epochs=1"),
    ]  # fmt: skip
    assert len(rows) == 8
    for row in rows:
        assert row["runs"] == 2
        for column in ("D_f", "unseen", "D_r", "D_test"):
            assert 0.0 <= row[column] <= 100.0
        assert row["seconds"] > 0
    assert rows[2]["D_f"] < rows[0]["D_f"]
    assert "| 16 | finetune, epochs=1 |" in instances.instance_markdown(rows)
    monkeypatch.setattr(instances, "_run", never)
    assert table() == rows


def test_unseen_accuracy_weighs_classes_as_the_forget_set_does(setting: Setting) -> None:
    model, _ = setting.model("original", setting.data.train)
    everything = setting.data.train
    lost = everything.where(torch.arange(8))
    found = instances.instance_scores(setting, model, lost, everything)["unseen"]
    total = count = 0.0
    for label in lost.targets.tolist():
        own = setting.measured.where(setting.measured.targets == label)
        total, count = total + setting.accuracy(model, own), count + 1
    assert found == pytest.approx(total / count, abs=1e-4)


def test_new_labels_are_always_other_ones() -> None:
    targets = torch.arange(10).repeat(50)
    new = relabel.new_labels(targets, 10, seed=1)
    assert not bool((new == targets).any())
    assert set(new.tolist()) == set(range(10))
    assert new.equal(relabel.new_labels(targets, 10, seed=1))


@pytest.mark.slow
def test_the_relabel_tables(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    attack: dict[str, object] = {"adversaries": 2, "attack_steps": 2, "epochs": 2}
    quick: dict[str, dict[str, object]] = {
        "correct": {"epochs": 20, "lr": 0.01}, "adv": attack, "adv_imp": attack,
    }  # fmt: skip

    def table() -> list[dict[str, Any]]:
        return relabel.relabel_table(setting, sizes=(4,), hyperparameters=quick)

    def continual() -> list[dict[str, Any]]:
        return relabel.continual_table(setting, requests=2, size=3, hyperparameters=quick)

    rows = table()
    titles = ["original", "correct, epochs=20, lr=0.01"]
    titles += [f"{slug}, adversaries=2, attack_steps=2, epochs=2" for slug in ("adv", "adv_imp")]
    assert [row["method"] for row in rows] == titles
    assert rows[1]["D_f new"] > rows[0]["D_f new"]
    sequence = continual()
    assert [(row["corrected"], row["method"]) for row in sequence[:2]] == [
        (3, titles[1]), (6, titles[1]),
    ]  # fmt: skip
    assert len(sequence) == 6
    assert f"| 6 | {titles[3]} |" in relabel.relabel_markdown(sequence)
    assert f"| 4 | {titles[2]} |" in relabel.relabel_markdown(rows)
    monkeypatch.setattr(relabel, "_run", never)
    monkeypatch.setattr(relabel, "_sequence", never)
    assert table() == rows
    assert store.markdown((), relabel.COLUMNS, continual()) == store.markdown(
        (), relabel.COLUMNS, sequence
    )


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_poison_exchanges_labels_within_pairs(share: float) -> None:
    data = digits().train
    poison = depoison.poisoned(data, share, seed=0)
    wrong = poison.train.targets != data.targets
    assert wrong.nonzero()[:, 0].equal(poison.positions)
    assert len(poison.positions) == pytest.approx(share * len(data), abs=10)
    assert poison.true_labels.equal(data.targets[wrong])
    assert len(poison.clean) == len(data) - len(poison.positions)
    flips = set(
        zip(data.targets[wrong].tolist(), poison.train.targets[wrong].tolist(), strict=True)
    )
    assert len(flips) == 10  # five pairs, both ways
    assert {(b, a) for a, b in flips} == flips
    counts = data.targets[wrong].bincount(minlength=10)
    assert counts.min() == counts.max()
    # the clean data set itself is as it was
    assert data.targets.equal(digits().train.targets)


def test_images_in_five_positions_are_the_image_and_its_neighbours() -> None:
    data = digits().train.where(torch.tensor([0, 1]))
    found = depoison.in_five_positions(data)
    assert found.targets.equal(data.targets.repeat(5))
    same, up, down, left, right = found.images.split(2)
    assert same.equal(data.images)
    assert up[..., :-1, :].equal(data.images[..., 1:, :])
    assert up[..., -1, :].equal(data.images[..., -1, :])  # the border repeats itself
    assert down[..., 1:, :].equal(data.images[..., :-1, :])
    assert left[..., :, :-1].equal(data.images[..., :, 1:])
    assert right[..., :, 1:].equal(data.images[..., :, :-1])


def test_the_first_row_of_pgu_sees_five_positions_and_is_kept_apart(setting: Setting) -> None:
    moved, plain = depoison.CURES[:2]
    data = setting.data.train
    assert len(moved.shown(data)) == 5 * len(data)
    assert plain.shown(data) is data
    assert len({cure.key for cure in depoison.CURES}) == len(depoison.CURES)


@pytest.mark.slow
def test_the_depoison_table(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    cures = (
        depoison.Cure("pgu", "pgu", {"epochs": 2}, moved=True),
        depoison.Cure("pgu, images as they are", "pgu", {"epochs": 2}),
        depoison.Cure("influence1", "influence1"),
        depoison.Cure("scrub", "scrub", {"epochs": 1}),
    )
    table = partial(depoison.depoison_table, setting, shares=(0.2,), cures=cures)
    rows = table()
    titles = [row["method"] for row in rows]
    assert titles == ["poisoned", "retrained", *(cure.title for cure in cures)]
    assert rows[2]["D_test"] != rows[3]["D_test"]
    for row in rows:
        assert row["flipped"] == "20 %"
        assert row["samples"] == 30
        assert 0.0 <= row["D_test"] <= 100.0
    assert "| 20 % | 30 | pgu |" in depoison.depoison_markdown(rows)
    monkeypatch.setattr(depoison, "_run", never)
    assert depoison.depoison_markdown(table()) == depoison.depoison_markdown(rows)


def test_the_cures_can_all_be_built() -> None:
    for cure in depoison.CURES:
        assert "depoison" in find(cure.method).card.goals


def test_a_forbidden_loader_cannot_be_read() -> None:
    forbidden = incremental.Forbidden()
    for read in (iter, len, lambda loader: loader.dataset):
        with pytest.raises(AssertionError, match="retained sample"):
            read(forbidden)


@pytest.mark.slow
def test_requests_follow_one_another_without_retained_samples(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    load = Statistics.load

    def watched(path: Path) -> Statistics:
        found = load(path)
        sizes.append(found.samples)
        return found

    monkeypatch.setattr(Statistics, "load", staticmethod(watched))
    table = partial(
        incremental.incremental_table, setting, size=10, requests=3, hyperparameters={"epochs": 2}
    )
    rows = table()
    assert [(row["request"], row["forgotten"]) for row in rows] == [
        (0, 0), (1, 10), (2, 20), (3, 30),
    ]  # fmt: skip
    assert {160, 150, 140} <= set(sizes)  # moments of what was forgotten are gone
    for row in rows:
        assert 0.0 <= row["D_f so far"] <= 100.0
    assert "| 3 | 30 |" in incremental.incremental_markdown(rows)
    monkeypatch.setattr(incremental, "_sequence", never)
    assert incremental.incremental_markdown(table()) == incremental.incremental_markdown(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            (
                "instances",
                "--size",
                "8",
                "--method",
                "neggrad",
                "--method",
                "su",
                "--without",
                "su",
            ),
            "| 8 | neggrad |",
        ),
        (("instances", "--size", "4", "--method", "neggrad", "--label", "0"), "| 4 | neggrad |"),
        (("relabel", "--size", "4", "--method", "correct", "--requests", "1"), "| 8 | correct |"),
        (
            (
                "relabel",
                "--size",
                "4",
                "--method",
                "correct",
                "--requests",
                "0",
                "--set",
                "correct.epochs=2",
                "--set",
                "correct.lr=0.5",
            ),
            "| 4 | correct, epochs=2, lr=0.5 |",
        ),
        (("depoison", "--share", "0.1", "--method", "influence1"), "| 10 % | 10 | influence1 |"),
        (("incremental", "--size", "8", "--requests", "1"), "| 1 | 8 |"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_commands_print_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo.build_small_vgg, "__defaults__", (4,))
    common = ("--data", "digits", "--limit", "100", "--model", "vgg", "--epochs", "1")
    done = CliRunner().invoke(app, [*words, *common], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert says in done.stdout
    assert "| su |" not in done.stdout  # left out


@pytest.mark.parametrize("word", ["epochs=2", "adv.epochs=2", "correct.epochs", "correct.depth=2"])
def test_a_setting_that_is_of_no_method_of_the_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(train, "fit", never)
    words = ("relabel", "--data", "digits", "--method", "correct", "--set", word)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert word.partition("=")[0].rpartition(".")[2] in done.output


def test_an_unknown_model_is_refused() -> None:
    done = CliRunner().invoke(app, ["instances", "--data", "digits", "--model", "alexnet"])
    assert done.exit_code != 0
    assert "vgg" in done.output


def test_a_model_trained_without_augmentation_is_another_one_in_the_cache(
    setting: Setting,
) -> None:
    augmented = replace(setting, recipe=replace(RECIPE, epochs=7))
    memorised = replace(setting, recipe=augmented.recipe.plain())
    assert (memorised.recipe.shift, memorised.recipe.flip) == (0, False)
    assert (augmented.key, memorised.key) == ("digits-160-vgg-e7", "digits-160-vgg-e7-plain")
