"""Calls of the public interface that cannot be served get a sentence and change nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import Patch, Statistics, audit, forget
from forgetkit.comparing import compare
from forgetkit.errors import (
    BadHyperparameter,
    BadTarget,
    DataError,
    ForgetkitError,
    MissingFile,
    ModelError,
)
from forgetkit.report import load_record
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights


@pytest.mark.parametrize("guard", [0.02, False, 1])
def test_a_guard_is_a_guard(guard: object) -> None:
    some = toy("cnn")
    before = weights(some.model)
    with pytest.raises(BadHyperparameter, match=r"Guard\(budget=0.02\)"):
        forget(some.model).classes([3]).using("lau").run(some.loader(), guard=guard)  # type: ignore[arg-type]
    assert changed(weights(some.model), before) == []


def test_a_run_that_nothing_watches_says_so() -> None:
    for loader, watched in ((toy("cnn").forget_loader(), False), (toy("cnn").loader(), True)):
        result = forget(toy("cnn").model).classes([3]).using("lau").on("cpu").run(loader)
        assert any("not watched" in note for note in result.notes) is not watched


def test_files_that_are_not_there_are_forgetkits_errors(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for read in (Statistics.load, Patch.load, load_record):
        with pytest.raises(MissingFile, match="missing"):
            read(missing)
    assert issubclass(MissingFile, ForgetkitError)
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("pgu", statistics=str(missing))
    with pytest.raises(MissingFile, match=r"Statistics\.collect"):
        request.run(some.loader(), guard=None)


def test_single_values_where_a_list_is_due() -> None:
    some = toy("cnn")
    with pytest.raises(BadHyperparameter, match=r"metrics=\['accuracy'\]"):
        audit(some.model, forget=some.loader(), classes=[3], metrics="accuracy")
    with pytest.raises(BadTarget, match=r"targets=\[3, 5\]"):
        compare(some.model, some.loader(), 3, ["lau"])  # type: ignore[arg-type]


def test_statistics_take_away_what_the_run_forgot_and_nothing_else() -> None:
    some = toy("cnn")
    collected = Statistics.collect(some.model, some.loader())
    request = forget(some.model).classes([3]).using("neggrad", epochs=1).on("cpu")
    result = request.run(some.loader(), guard=None)
    images, labels = some.train.tensors
    few = DataLoader(TensorDataset(images[labels == 3][:7], labels[labels == 3][:7]), batch_size=7)
    with pytest.raises(DataError, match="forgot 60 samples, found 7"):
        collected.without(result, few)
    assert collected.without(result, some.loader()).samples == 180


def test_images_that_the_model_cannot_take() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    wrong = {
        "scaled and": (images * 255).byte(),
        "channels": torch.cat([images, images], dim=1),
    }
    for cure, given in wrong.items():
        loader = DataLoader(TensorDataset(given, labels), batch_size=60)
        with pytest.raises(ForgetkitError, match=cure):
            forget(some.model).classes([3]).using("finetune").on("cpu").run(loader)
    with torch.inference_mode():
        made_inside = copy.deepcopy(some.model)
        with pytest.raises(ForgetkitError, match=r"inside torch\.inference_mode"):
            forget(made_inside).classes([3]).using("finetune").on("cpu").run(some.loader())
    with pytest.raises(ModelError, match="pass the model itself"):
        Statistics.collect("resnet18", some.loader())  # type: ignore[arg-type]
