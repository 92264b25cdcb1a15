"""The evidence table on a few digits: a column a model, a row a check, nothing audited twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forgetkit.auditing.shadows import load_shadows
from forgetkit.benchmark import evidence, zoo
from forgetkit.benchmark.datasets import digits
from forgetkit.benchmark.train import RECIPES, TrainRecipe


def made_small(
    cache: Path, monkeypatch: pytest.MonkeyPatch, *, epochs: int, overtrained: int
) -> None:
    """Make the table's VGG narrow, its trainings short and its cache empty."""
    monkeypatch.setenv("FORGETKIT_CACHE", str(cache))
    quick = TrainRecipe(epochs=epochs, lr=0.05, optimizer="sgd", weight_decay=0.0, batch_size=32)
    monkeypatch.setitem(RECIPES, "vgg", quick)
    monkeypatch.setattr(zoo.build_small_vgg, "__defaults__", (4,))
    monkeypatch.setattr(evidence, "MEMBERS", 60)
    monkeypatch.setattr(evidence, "OVERTRAINED", overtrained)


@pytest.mark.slow
def test_a_model_that_hides_a_class_and_one_that_knows_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_small(tmp_path, monkeypatch, epochs=6, overtrained=25)
    data = digits().limited(300, 200)
    audits = evidence.class_evidence("vgg", data, "digits-300", methods=("lau",), level="quick")
    assert list(audits) == ["original", "lau", "retrained"]
    assert audits["lau"]["accuracy"].value == 0.0
    assert audits["lau"].head_only is True
    rows = evidence.evidence_markdown(audits).splitlines()
    assert rows[0] == "| check | original | lau | retrained |"
    assert len(rows) == 2 + len(audits["lau"].findings)
    assert evidence.verdicts(audits).count("\n- ") == 2
    members = evidence.member_evidence("vgg", data, "digits", level="quick")
    known, unknown = (members[title]["mia_loss"] for title in ("over-trained", "never saw them"))
    assert known.value is not None
    assert unknown.value is not None
    assert known.value > unknown.value

    def never(*_: object, **__: object) -> None:
        raise AssertionError("audited twice")

    monkeypatch.setattr(evidence, "audit", never)
    again = evidence.class_evidence("vgg", data, "digits-300", methods=("lau",), level="quick")
    assert evidence.evidence_markdown(again).splitlines() == rows


@pytest.mark.slow
def test_with_several_other_models_more_attacks_have_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_small(tmp_path, monkeypatch, epochs=2, overtrained=2)
    monkeypatch.setattr(evidence, "OTHERS", {"quick": 6})
    data = digits().limited(480, 200)
    members = evidence.member_evidence("vgg", data, "digits", level="quick")
    for found in members.values():
        assert all(found[slug].value is not None for slug in ("lira", "neighbour_attack", "rmia"))
    file = next((tmp_path / "benchmark" / "evidence").glob("*-shadows-*.safetensors"))
    asked = data.train.where(
        torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:30]
    )
    shadows = load_shadows(file, asked.targets)
    assert shadows.seen.shape == shadows.unseen.shape == (6, 30, 10)
    assert not torch.equal(shadows.seen, shadows.unseen)
    assert len(shadows.unlearned) == 0
