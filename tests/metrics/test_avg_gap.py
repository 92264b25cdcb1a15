from __future__ import annotations

import pytest
import toy_evidence as toys

from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.gaps import mean_gap
from forgetkit.metrics.avg_gap import AverageGap


def test_pinned() -> None:
    assert mean_gap((99.97, 0, 93.53), (99.79, 0, 92.50)) == pytest.approx(0.403333, abs=1e-6)


def test_columns_and_controls() -> None:
    found = AverageGap().measure(toys.evidence(references=2))
    assert set(found.details["reference"]) == {"forget", "retain", "test", "membership"}  # type: ignore[call-overload]  # a mapping
    assert found.samples == 4
    assert set(found.controls) == {"original", "retrained"}
    assert found.controls["retrained"] < found.controls["original"]


def test_the_same_model_has_no_gap() -> None:
    assert AverageGap().measure(toys.evidence(toys.retrained()[0])).value == 0.0


def test_fewer_sets_make_fewer_columns() -> None:
    found = AverageGap().measure(toys.without(toys.evidence(), "test_forget"))
    assert set(found.details["reference"]) == {"forget", "retain", "test"}  # type: ignore[call-overload]  # a mapping
    with pytest.raises(Missing, match="needs the retrained model"):
        AverageGap().measure(toys.evidence(roles=()))
