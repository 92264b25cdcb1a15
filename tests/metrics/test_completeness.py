from __future__ import annotations

import pytest
import toy_evidence as toys

from forgetkit.metrics.completeness import Completeness


def test_counts_equal_predictions() -> None:
    found = Completeness().measure(toys.evidence(references=2))
    own, first, second = (
        subject.outputs["forget"].predicted for subject in (toys.patched(), *toys.retrained()[:2])
    )
    assert found.value is not None
    assert found.value == pytest.approx(float((own == first).double().mean()), abs=1e-12)
    expected = float((second == first).double().mean())
    assert found.controls["retrained"] == pytest.approx(expected, abs=1e-12)
    assert found.controls["original"] == 0.0
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]


def test_the_same_model_agrees() -> None:
    found = Completeness().measure(toys.evidence(toys.retrained()[0], references=3))
    assert (found.value, found.verdict) == (1.0, "as retrain")
