"""``forgetkit audit`` end to end on image folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from typer.testing import Result

from forgetkit import Audit
from forgetkit.metric import find_metric

Invoke: TypeAlias = Callable[..., Result]
FEW = ("accuracy", "layer_distance", "linear_probe", "mia_loss")


@pytest.fixture(autouse=True)
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave four checks in the registry: one of each kind."""
    chosen = [find_metric(slug) for slug in FEW]
    monkeypatch.setattr("forgetkit.auditing.run.all_metrics", lambda: chosen)


def words(colours: Path, *more: object) -> list[object]:
    return ["--data", colours, "--classes", "2", "--device", "cpu", *more]


@pytest.fixture
def forgotten(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> tuple[Path, Path]:
    """Return weights that forgot class 2 by a head edit, and the patch of the run."""
    name, weights = factory
    patch = tmp_path / "edit.safetensors"
    done = invoke(
        "run", name, "--weights", weights, "--using", "lau", "--out", tmp_path / "model",
        *words(colours, "--patch", patch),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return tmp_path / "model" / "model.safetensors", patch


@pytest.mark.slow
def test_a_head_edit_is_found_with_the_original_as_weights(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], forgotten: tuple[Path, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    name, original = factory
    out, reference = tmp_path / "report", tmp_path / "retrained.pt"
    state = torch.load(original, weights_only=True)
    torch.save({name: tensor + 0.01 for name, tensor in state.items()}, reference)
    done = invoke(
        "audit", name, "--weights", forgotten[0], "--original", original, "--reference", reference,
        "--out", out, *words(colours, "--json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["head_only"] is True
    assert record["changed"] == ["4.weight", "4.bias"]
    assert record["samples"] == {"forget": 8, "retain": 16, "test_forget": 4, "test_retain": 8}
    assert record["class_names"] == ["blue", "green", "red"]
    assert record["target"] == "class 2 (red)"
    assert {finding["slug"] for finding in record["findings"]} == set(FEW)
    assert record["saved"] == [str(out / "audit.json"), str(out / "audit.md")]
    found = Audit.load(out / "audit.json")
    assert found["accuracy"].value == 0.0
    assert found["accuracy"].controls["original"] == 1.0
    assert (out / "audit.md").read_text(encoding="utf-8") == found.markdown()


@pytest.mark.slow
def test_the_table_goes_to_standard_output_and_progress_to_standard_error(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], forgotten: tuple[Path, Path]
) -> None:
    name, _ = factory
    done = invoke(
        "audit", name, "--weights", forgotten[0], "--patch", forgotten[1], *words(colours)
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Audit (quick): class 2 (red)" in done.stdout
    assert "Only the classification head changed" in done.stdout
    assert "24 training images, 12 test images" in done.stderr
    assert "about" in done.stderr
    assert "4/4" in done.stderr


def test_a_transformers_folder_and_no_test_images(
    invoke: Invoke, colours: Path, tmp_path: Path
) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label={0: "red", 1: "green", 2: "blue"},
    )  # fmt: skip
    for seed, folder in enumerate(("model", "before")):
        torch.manual_seed(seed)
        ViTForImageClassification(config).save_pretrained(tmp_path / folder)
    done = invoke(
        "audit", tmp_path / "model", "--original", tmp_path / "before", "--full",
        *words(colours / "train", "--json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["level"] == "full"
    assert record["target"] == "class 2 (blue)"
    assert record["head_only"] is False
    assert any(sentence.startswith("no test set") for sentence in record["missing"])
    assert record["samples"] == {"forget": 8, "retain": 16}


def test_ctrl_c_writes_what_was_found_and_says_so_by_its_status(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(find_metric("mia_loss"), "measure", interrupted)
    name, weights = factory
    done = invoke("audit", name, "--weights", weights, "--out", tmp_path / "out", *words(colours))
    assert done.exit_code == 130, done.output
    found = Audit.load(tmp_path / "out" / "audit.json")
    assert found.partial
    assert found["accuracy"].value == 1.0
    assert found["mia_loss"].verdict == "not run"


def test_what_cannot_be_used_is_one_sentence(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], forgotten: tuple[Path, Path]
) -> None:
    name, weights = factory
    both = invoke(
        "audit", name, "--weights", forgotten[0], "--original", weights, "--patch", forgotten[1],
        *words(colours),
    )  # fmt: skip
    assert both.exit_code == 2
    assert "--original and --patch: expected one of the two" in both.stderr
    other = invoke("audit", name, "--weights", weights, "--patch", forgotten[1], *words(colours))
    assert other.exit_code == 2
    assert "Traceback" not in other.stderr
    level = invoke("audit", name, "--level", "deep", *words(colours))
    assert level.exit_code == 2


def test_only_the_checks_that_were_named_are_run(
    invoke: Invoke, colours: Path, factory: tuple[str, Path]
) -> None:
    name, weights = factory
    asked = ("audit", name, "--weights", weights)
    done = invoke(
        *asked, "--metrics", "accuracy", "--metrics", "layer_distance", *words(colours, "--json")
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["findings"]
    assert {finding["slug"] for finding in found} == {"accuracy", "layer_distance"}
    wrong = invoke(*asked, "--metrics", "acuracy", *words(colours))
    assert wrong.exit_code == 2
    assert "accuracy" in wrong.stderr
