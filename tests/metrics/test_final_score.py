from __future__ import annotations

from dataclasses import replace

import pytest
import toy_evidence as toys

from forgetkit.membership import final_score
from forgetkit.metrics.final_score import FinalScore


@pytest.mark.parametrize(
    ("accuracy", "score", "expected"),
    [
        (0.5601, 0.0744, 0.70565),
        (0.5685, 0.0305, 0.75375),
        (0.5789, 0.2784, 0.51105),
        (0.9017, 0.0462, 0.90465),
        (0.8921, 0.0361, 0.90995),
        (0.1733, 0.0895, 0.49715),
    ],
)
def test_pinned(accuracy: float, score: float, expected: float) -> None:
    assert final_score(accuracy, score) == pytest.approx(expected, abs=1e-9)


def test_joins_accuracy_and_forgetting_score() -> None:
    found = FinalScore().measure(toys.evidence(roles=()))
    accuracy = float(toys.patched().outputs["test_retain"].right.double().mean())
    scores = found.details["forgetting_score"]
    assert isinstance(scores, dict)
    assert found.value == pytest.approx(final_score(accuracy, scores["unlearned"]), abs=1e-12)
    assert found.samples == 180


def test_without_forgotten_classes_every_test_sample_counts() -> None:
    found = FinalScore().measure(replace(toys.evidence(roles=()), goal="instances"))
    assert found.details["sets"] == ["test_forget", "test_retain"]
    assert found.samples == 240
