"""The study of settings on a few digits: figures against the mask, resuming, the command."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from forgetkit.benchmark import __main__ as command
from forgetkit.benchmark import settings, zoo
from forgetkit.benchmark.datasets import digits
from forgetkit.benchmark.settings import Study, settings_table
from forgetkit.benchmark.store import Record, Setting
from forgetkit.benchmark.train import TrainRecipe
from forgetkit.errors import BadHyperparameter
from forgetkit.method import build

RECIPE = TrainRecipe(epochs=8, lr=0.05, optimizer="sgd", weight_decay=0.0, batch_size=32)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    build_vgg = partial(zoo.build_small_vgg, width=4)
    return Study(Setting("vgg", build_vgg, RECIPE, digits().limited(240, 120), "digits-240"), 120)


@pytest.mark.parametrize("method", sorted(settings.STUDIES))
def test_every_variant_is_one_that_the_method_knows(method: str) -> None:
    variants = list(settings.STUDIES[method].values())
    assert variants[0] == {}
    built = [build(method, dict(variant)) for variant in variants]
    assert len(set(built)) == len(variants)


@pytest.mark.slow
def test_a_row_for_each_variant_against_the_mask(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = settings_table(study, "lau", [3, 5])
    assert [found["setting"] for found in rows] == list(settings.STUDIES["lau"])
    mask = {c: study.once("linear_filtration", {"form": "naive"}, c)["D_tr"] for c in (3, 5)}
    lau = {c: study.once("lau", {}, c) for c in (3, 5)}
    away = [lau[c]["D_tr"] - mask[c] for c in (3, 5)]
    assert rows[0]["D_tr - mask"] == pytest.approx(sum(away) / 2)
    assert rows[0]["worst"] == min(away)
    assert rows[0]["largest"] == max(run["D_tf"] for run in lau.values())

    def never(*_: object) -> Record:
        raise AssertionError("a run in the cache was made again")

    monkeypatch.setattr(Study, "_run", never)
    assert settings_table(study, "lau", [3, 5]) == rows


@pytest.mark.slow
def test_edits_of_the_head_score_as_the_whole_model_does(study: Study) -> None:
    record = study.once("linear_filtration", {"form": "naive"}, 3)
    test = study.data.test
    with torch.no_grad():
        logits = study.model()(test.images)  # the kept model was not edited
    right = logits.index_fill(1, torch.tensor([3]), -torch.inf).argmax(dim=1) == test.targets
    assert record["D_tr"] == pytest.approx(100 * float(right[test.targets != 3].double().mean()))
    assert record["D_tf"] == 0.0
    assert (logits.argmax(dim=1) == 3).any()
    assert len(study.data.train) == 120
    assert len(test) == len(study.setting.data.test)


def test_a_method_without_a_study_is_refused(study: Study) -> None:
    with pytest.raises(BadHyperparameter, match="lau, pgu, suli"):
        settings_table(study, "neggrad", [3])


@pytest.mark.slow
def test_the_command_prints_a_row_a_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    monkeypatch.setitem(zoo.BUILDERS, "vgg", partial(zoo.build_small_vgg, width=4))
    told = ["settings", "pgu", "--data", "digits", "--model", "vgg", "--limit", "200"]
    told += ["--epochs", "4", "--images", "100", "--label", "3"]
    found = CliRunner().invoke(command.app, told)
    assert found.exit_code == 0, found.output
    for title in settings.STUDIES["pgu"]:
        assert f"| {title} |" in found.output
