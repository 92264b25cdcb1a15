"""``methods``, ``inspect``, ``patch`` and the first lines of every command's help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from typer.testing import Result

import forgetkit
from forgetkit.method import all_cards

Invoke: TypeAlias = Callable[..., Result]


def test_methods_lists_every_registered_method(invoke: Invoke) -> None:
    done = invoke("methods")
    assert done.exit_code == 0
    for card in all_cards():
        assert card.slug in done.stdout


def test_methods_as_json_has_cards_and_settings(invoke: Invoke) -> None:
    found = {
        entry["slug"]: entry for entry in json.loads(invoke("methods", "--json").stdout)["methods"]
    }
    assert found["lau"]["edits"] == "head"
    assert found["lau"]["settings"]["alpha"]["default"] == 0.5
    assert found["lau"]["settings"]["alpha"]["high"] == 1.0
    assert json.loads(invoke("methods", "lau", "--json").stdout) == found["lau"]


def test_one_method_is_shown_with_its_settings(invoke: Invoke) -> None:
    done = invoke("methods", "lau")
    assert "Layer Attack Unlearning" in done.stdout
    assert "double_softmax" in done.stdout
    unknown = invoke("methods", "lua")
    assert unknown.exit_code == 2
    assert "lau" in unknown.stderr


def test_inspect_shows_head_and_input(invoke: Invoke) -> None:
    done = invoke("inspect", "torchvision/squeezenet1_1", "--size", "64", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["head_names"] == ["classifier.1"]
    assert record["num_classes"] == 1000
    assert record["feature_dim"] == 512
    assert record["input"]["shape"] == [3, 64, 64]
    table = invoke("inspect", "torchvision/squeezenet1_1", "--size", "64")
    assert "classifier.1" in table.stdout
    assert "3 x 64 x 64" in table.stdout


def test_inspect_refuses_what_is_no_model(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke("inspect", tmp_path)
    assert done.exit_code == 2
    assert str(tmp_path) in done.stderr.replace("\n", "")


def test_a_patch_file_goes_on_and_off_a_checkpoint(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    patch, fresh = tmp_path / "edit.safetensors", tmp_path / "fresh.pt"
    shutil.copy(weights, fresh)
    ran = invoke(
        "run", name, "--weights", weights, "--data", colours, "--classes", "2", "--using", "lau",
        "--out", tmp_path / "out", "--patch", patch,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    shown = json.loads(invoke("patch", "show", patch, "--json").stdout)
    assert set(shown["tensors"]) == {"4.weight", "4.bias"}
    assert "4.weight" in invoke("patch", "show", patch).stdout

    original = torch.load(fresh, weights_only=True)
    assert invoke("patch", "apply", patch, fresh).exit_code == 0
    edited = torch.load(fresh, weights_only=True)
    assert not torch.equal(original["4.weight"], edited["4.weight"])
    again = invoke("patch", "apply", patch, fresh)
    assert again.exit_code == 2
    assert again.stderr
    written = json.loads(invoke("patch", "revert", patch, fresh, "--json").stdout)["written"]
    assert written == [str(fresh)]
    restored = torch.load(fresh, weights_only=True)
    assert all(torch.equal(original[key], restored[key]) for key in original)


def test_a_missing_patch_is_status_2(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke("patch", "show", tmp_path / "nothing.safetensors")
    assert done.exit_code == 2
    assert "nothing.safetensors" in done.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "cifar"], "digits or fashion-mnist"),
        (["--data", "fashion-mnist"], "--root"),
        (["--data", "fashion-mnist", "--root", "nowhere"], "train-images-idx3-ubyte"),
        (["--classes", "12"], "0 to 9"),
        (["--classes", "three"], "class numbers"),
        (["--using", "magic"], "magic"),
    ],
)
def test_the_demo_refuses_before_it_trains(
    invoke: Invoke, tmp_path: Path, words: list[str], says: str
) -> None:
    done = invoke("demo", "--out", tmp_path / "out", *words)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["", "demo", "run", "inspect", "methods", "patch"])
def test_every_command_has_help(invoke: Invoke, command: str) -> None:
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0
    assert "Usage" in done.stdout


@pytest.mark.slow
def test_the_installed_command_prints_its_version() -> None:
    script = Path(sys.executable).parent / "forgetkit"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == forgetkit.__version__
