from __future__ import annotations

import math

import pytest
import torch
import toy_evidence as toys
from scipy.stats import entropy as scipy_entropy
from scipy.stats import wasserstein_distance
from torch import nn

from forgetkit.auditing.evidence import Evidence, Subject
from forgetkit.metric import Metric
from forgetkit.metrics.entropy import Entropy
from forgetkit.metrics.zrf import ZRF


def test_as_scipy() -> None:
    found = Entropy().measure(toys.evidence())
    own, reference = (
        scipy_entropy(subject.outputs["forget"].log_probs.exp().numpy(), axis=1)
        for subject in (toys.patched(), toys.retrained()[0])
    )
    assert found.value == pytest.approx(own.mean(), abs=1e-9)
    assert found.details["normalised"] == pytest.approx(own.mean() / math.log(4), abs=1e-9)
    assert found.details["wasserstein"] == pytest.approx(
        wasserstein_distance(own, reference), abs=1e-9
    )


def test_histograms_share_their_bins() -> None:
    found = Entropy().measure(toys.evidence(roles=("original", "retrained", "untrained")))
    assert found.details["histogram_range"] == [0.0, pytest.approx(math.log(4))]
    tables = found.details["histograms"]
    assert isinstance(tables, dict)
    assert set(tables) == {"forget", "test_forget", "test_retain"}
    for table in tables.values():
        assert {len(heights) for heights in table.values()} == {7}  # square root of 60
        assert all(sum(heights) == pytest.approx(1.0) for heights in table.values())


def test_verdict() -> None:
    def found(unlearned: Subject, references: int = 4) -> str:
        return Entropy().measure(toys.evidence(unlearned, references=references)).verdict

    assert found(toys.original()) == "residual"
    assert found(toys.untrained()) == "over-forgotten"
    assert found(toys.retrained()[0]) == "as retrain"
    assert Entropy().measure(toys.evidence(roles=())).verdict == "not decidable"


def test_a_single_retrained_model_decides_nothing() -> None:
    """Two trainings always differ in how sure they are: one is no yardstick."""
    for one in (toys.original(), toys.retrained()[0], toys.retrained()[1]):
        found = Entropy().measure(toys.evidence(one))
        assert found.verdict == "not decidable"
        assert "2 retrained models are needed" in found.note
        assert "1 was given" in found.note
    assert "are needed" not in Entropy().measure(toys.evidence(one, references=2)).note


@pytest.mark.parametrize("metric", [Entropy(), ZRF()], ids=lambda metric: metric.card.slug)
def test_the_surest_of_models_that_differ_is_not_accused(metric: Metric) -> None:
    """Surer than all of them, sample by sample, but by less than they differ."""
    noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) / 10
    labels = torch.zeros(60, dtype=torch.int64)

    def answers(lead: float) -> Subject:
        found = toys.outputs(noise + lead * torch.tensor([1.0, 0.0, 0.0, 0.0]), labels)
        return Subject(nn.Identity(), {"forget": found}, None)

    references = tuple(map(answers, (1.0, 1.4, 1.8)))
    verdicts = []
    for lead in (2.0, 6.0):
        subjects = {
            "unlearned": answers(lead), "retrained": references[0], "untrained": answers(0.0),
        }  # fmt: skip
        given = Evidence(subjects, {}, "instances", (0,), 4, references)  # type: ignore[arg-type]  # roles
        verdicts.append(metric.measure(given).verdict)
    assert verdicts == ["as retrain", "residual"]
