from __future__ import annotations

import math

import pytest
import toy_evidence as toys
from scipy.stats import entropy as scipy_entropy
from scipy.stats import wasserstein_distance

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
    assert Entropy().measure(toys.evidence(toys.original())).verdict == "residual"
    assert Entropy().measure(toys.evidence(toys.untrained())).verdict == "over-forgotten"
    assert Entropy().measure(toys.evidence(toys.retrained()[0])).verdict == "as retrain"
    assert Entropy().measure(toys.evidence(roles=())).verdict == "not decidable"
