from __future__ import annotations

import math
from dataclasses import replace

import pytest
import toy_evidence as toys
from scipy.stats import entropy as scipy_entropy
from scipy.stats import wasserstein_distance

from forgetkit.auditing.evidence import Subject
from forgetkit.metrics.entropy import Entropy


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


def test_models_trained_alike_are_not_accused() -> None:
    """Each is surely more or less sure than the others; that is chance in training."""
    every = toys.retrained()
    for at, one in enumerate(every):
        others = every[:at] + every[at + 1 :]
        evidence = replace(toys.evidence(one, references=4), references=others)
        assert Entropy().measure(evidence).verdict == "as retrain"
    sure = [one.outputs["forget"].log_probs.exp().amax(1).mean() for one in every]
    assert float(max(sure) - min(sure)) > 0.02
