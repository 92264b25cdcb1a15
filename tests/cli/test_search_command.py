"""``forgetkit search`` on image folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from typer.testing import Result

from forgetkit.method import build

pytest.importorskip("optuna")
Invoke: TypeAlias = Callable[..., Result]


def words(colours: Path, *more: object) -> list[object]:
    return [
        "--data", colours / "train", "--validate", colours / "test", "--classes", "red",
        "--using", "lau", "--set", "epochs=2", "--runs", "3", "--device", "cpu", *more,
    ]  # fmt: skip


def test_json_holds_settings_that_using_takes(
    invoke: Invoke, colours: Path, factory: tuple[str, Path]
) -> None:
    name, weights = factory
    options = words(colours, "--fields", "lr,alpha", "--json")
    done = invoke("search", name, "--weights", weights, *options)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["method"] == "lau"
    assert record["best"].keys() == {"epochs", "lr", "alpha"}
    assert build("lau", record["best"]).hyperparameters()["epochs"] == 2
    assert len(record["runs"]) == 3
    assert record["value"] == max(run["value"] for run in record["runs"])
    assert "24 training images" in done.stderr
    assert "3/3 lr=" in done.stderr


def test_in_words_it_prints_options_for_run(
    invoke: Invoke, colours: Path, factory: tuple[str, Path]
) -> None:
    name, weights = factory
    options = words(colours, "--fields", "lr", "--reference", weights)
    done = invoke("search", name, "--weights", weights, *options)
    assert done.exit_code == 0, done.output
    assert "minus the distance to the reference" in done.stdout
    assert "--set epochs=2 --set lr=" in done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--fields", "lrr"], "expected hyper-parameters of lau, found 'lrr'"),
        (["--using", "laus"], "did you mean 'lau'"),
        (["--set", "alpha=2"], "alpha must be a number in [0, 1]"),
        (["--validate", "nowhere"], "found nothing there"),
        (["--minutes", "0"], "expected a positive number"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], change: list[str], says: str
) -> None:
    name, weights = factory
    options = dict(zip(*[iter(map(str, words(colours)))] * 2, strict=True))
    if change[0] == "--using":
        del options["--set"]
    options |= {change[0]: change[1]}
    flat = [word for pair in options.items() for word in pair]
    done = invoke("search", name, "--weights", weights, *flat)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("part", ["train", ""])
@pytest.mark.parametrize("command", ["search", "benchmark"])
def test_training_images_are_no_validation(
    invoke: Invoke,
    colours: Path,
    factory: tuple[str, Path],
    tmp_path: Path,
    command: str,
    part: str,
) -> None:
    name, weights = factory
    told = ["--data", colours / "train", "--validate", colours / part, "--classes", "red"]
    own = (
        ["--using", "lau"] if command == "search" else ["--methods", "lau", "--out", tmp_path / "o"]
    )
    done = invoke(command, name, "--weights", weights, *told, *own)
    assert done.exit_code == 2
    assert "expected a folder of classes without training images" in done.stderr
