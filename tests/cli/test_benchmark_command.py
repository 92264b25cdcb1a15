"""``forgetkit benchmark`` on an image folder and on the built-in models and data."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from typer.testing import Result

from forgetkit.benchmark.train import TrainRecipe
from forgetkit.demo.contenders import CONTENDERS

Invoke: TypeAlias = Callable[..., Result]


def words(colours: Path, out: Path, *more: object) -> list[object]:
    return [
        "--data", colours, "--classes", "red", "--methods", "lau,neggrad", "--seeds", "2",
        "--set", "neggrad.epochs=1", "--out", out, "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.mark.slow
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
        "comparison.html", "comparison.json", "pictures", "runs", "table.csv", "table.md",
        "table.tex",
    ]  # fmt: skip
    assert "24 training images, 12 test images" in first.stderr
    assert "5/5 neggrad (epochs=1), classes 2 (red), seed 1" in first.stderr
    again = invoke("benchmark", name, "--weights", weights, *words(colours, out, "--json"))
    assert json.loads(again.stdout) == record
    assert again.stderr.count(": read") == 5


@pytest.mark.slow
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


def write_fashion(folder: Path, count: int) -> None:
    """Write Fashion-MNIST's four files with few images, each class of one brightness."""
    folder.mkdir()
    labels = torch.arange(10, dtype=torch.uint8).repeat(count)
    images = (25 * labels).repeat_interleave(28 * 28)
    for part in ("train", "t10k"):
        # The fourth byte of the header is the number of dimensions, four bytes for each follow.
        for name, values, dimensions in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
            text = bytes([0, 0, 8, dimensions]) + bytes(4 * dimensions) + bytes(values.tolist())
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(text))


@pytest.mark.slow
def test_the_built_in_model_is_trained_once_and_kept(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path / "cache"))
    write_fashion(tmp_path / "fashion", 12)
    recipe = TrainRecipe(epochs=1, lr=0.01, optimizer="sgd", weight_decay=0.0, batch_size=40)
    for contender in CONTENDERS:
        monkeypatch.setitem(contender.recipes, "fashion-mnist", recipe)
    command = [
        "benchmark", "vit", "--builtin", "fashion-mnist", "--root", tmp_path / "fashion",
        "--limit", "100", "--classes", "3", "--methods", "lau", "--seeds", "1", "--device", "cpu",
    ]  # fmt: skip
    first = invoke(*command, "--out", tmp_path / "a", "--json")
    assert first.exit_code == 0, first.output
    assert "vit trained on 100 images of fashion-mnist, 120 test images" in first.stderr
    (kept,) = (tmp_path / "cache").rglob("*.safetensors")
    assert kept.name == "fashion-mnist-100-demo-vit-e1-all.safetensors"
    before = kept.stat().st_mtime_ns
    again = invoke(*command, "--out", tmp_path / "b", "--json")
    assert kept.stat().st_mtime_ns == before
    found = [json.loads(done.stdout)["runs"] for done in (first, again)]
    assert [run["target"] for run in found[0]] == ["classes 3 (Dress)"] * 2
    for run in (*found[0], *found[1]):
        del run["scores"]["seconds"]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "MODEL: expected a model and an image folder, found no model"),
        (["a-model"], "--data: expected a model and an image folder, found no folder"),
        (["--builtin", "cifar"], "--builtin cifar: expected one of digits, fashion-mnist"),
        (["vgg", "--builtin", "digits"], "MODEL vgg: expected one of resnet, vit"),
        (["--builtin", "fashion-mnist"], "found no --root"),
        (["--builtin", "digits", "--data", "images"], "--data: expected it beside a model"),
        (["--builtin", "digits", "--size", "8"], "--size: expected it beside a model"),
        (["a-model", "--data", "images", "--limit", "5"], "--limit: expected it beside --builtin"),
    ],
)
def test_own_and_built_in_data_do_not_mix(
    invoke: Invoke, tmp_path: Path, more: list[str], says: str
) -> None:
    out = tmp_path / "out"
    done = invoke("benchmark", *more, "--classes", "3", "--methods", "lau", "--out", out)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert not out.exists()


@pytest.mark.slow
def test_the_command_killed_and_given_again_ends_with_the_same_table(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    command = [
        "benchmark", name, "--weights", weights, "--data", colours, "--classes", "red",
        "--methods", "lau,neggrad,random_label", "--seeds", "4", "--device", "cpu", "--out",
    ]  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "killed"
    root = Path(__file__).parents[2]
    places = (tmp_path, root, root / "adapters")
    process = subprocess.Popen(
        [sys.executable, "-m", "forgetkit", *map(str, command), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(map(str, places))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("1/13"):
                break
        time.sleep(random.Random(0).uniform(0, 0.2))  # noqa: S311  no secret
        process.kill()
    assert process.returncode == -signal.SIGKILL
    finished = {file: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}
    assert finished
    for folder in (out, whole):
        done = invoke(*command, folder)
        assert done.exit_code == 0, done.output
    assert finished == {file: file.stat().st_mtime_ns for file in finished}
    assert len(list((out / "runs").glob("*.json"))) == 13
    first, second = (
        [
            {key: row[key] for key in row if "seconds" not in key}
            for row in csv.DictReader((folder / "table.csv").read_text("utf-8").splitlines())
        ]
        for folder in (out, whole)
    )
    assert first == second
