"""``forgetkit benchmark`` on an image folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from typer.testing import Result

Invoke: TypeAlias = Callable[..., Result]


def words(colours: Path, out: Path, *more: object) -> list[object]:
    return [
        "--data", colours, "--classes", "red", "--methods", "lau,neggrad", "--seeds", "2",
        "--set", "neggrad.epochs=1", "--out", out, "--device", "cpu", *more,
    ]  # fmt: skip


def test_it_writes_tables_and_a_second_call_reads_the_runs(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    out = tmp_path / "out"
    first = invoke("benchmark", name, "--weights", weights, *words(colours, out, "--json"))
    assert first.exit_code == 0, first.output
    record = json.loads(first.stdout)
    titles = [row["title"] for row in record["rows"]]
    assert titles == ["original", "lau", "neggrad (epochs=1)"]
    assert [row["runs"] for row in record["rows"]] == [1, 2, 2]
    assert record["rows"][0]["mean"]["D_f"] == 100.0
    assert record["rows"][1]["mean"]["D_tf"] == 0.0
    assert record["rows"][1]["target"] == "classes 2 (red)"
    assert sorted(file.name for file in out.iterdir()) == [
        "comparison.json", "runs", "table.csv", "table.md", "table.tex",
    ]  # fmt: skip
    assert "24 training images, 12 test images" in first.stderr
    assert "5/5 neggrad (epochs=1), classes 2 (red), seed 1" in first.stderr
    again = invoke("benchmark", name, "--weights", weights, *words(colours, out, "--json"))
    assert json.loads(again.stdout) == record
    assert again.stderr.count(": read") == 5


def test_each_classes_option_is_a_target(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    done = invoke(
        "benchmark", name, "--weights", weights, "--data", colours, "--classes", "2", "--classes",
        "0,1", "--methods", "lau", "--seeds", "1", "--out", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "classes 0 (blue), 1 (green)" in (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "original" in done.stdout
    assert "wrote table.md" in done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--methods", "laus"], "did you mean 'lau'"),
        (["--set", "epochs=2"], "--set epochs=2: expected METHOD.NAME=VALUE"),
        (["--set", "suli.epochs=2"], "a method of --methods"),
        (["--set", "lau.alpha=2"], "alpha must be a number in [0, 1]"),
        (["--classes", "mauve"], "mauve"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    invoke: Invoke,
    colours: Path,
    factory: tuple[str, Path],
    tmp_path: Path,
    change: list[str],
    says: str,
) -> None:
    name, weights = factory
    options = dict(zip(*[iter(map(str, words(colours, tmp_path / "out")))] * 2, strict=True))
    if change[0] == "--methods":
        del options["--set"]
    options |= {change[0]: change[1]}
    flat = [word for pair in options.items() for word in pair]
    done = invoke("benchmark", name, "--weights", weights, *flat)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_model_is_refused(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    few = ["--data", colours, "--classes", "2", "--methods", "lau", "--seeds", "1"]
    place = ["--out", tmp_path / "out", "--device", "cpu"]
    assert invoke("benchmark", name, "--weights", weights, *few, *place).exit_code == 0
    state = torch.load(weights, weights_only=True)
    state["4.bias"] += 0.5
    torch.save(state, weights)
    done = invoke("benchmark", name, "--weights", weights, *few, *place)
    assert done.exit_code == 2
    assert "made for another one" in done.stderr
