from __future__ import annotations

import pytest
import toy_evidence as toys

from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.gaps import tug_of_war
from forgetkit.metrics.tow import TugOfWar


def test_pinned() -> None:
    assert tug_of_war((0, 0.02, 0.02)) == pytest.approx(0.9604, abs=1e-9)
    assert tug_of_war((0, -0.02, 0.02)) == pytest.approx(0.9604, abs=1e-9)


def test_order_of_the_models() -> None:
    found = TugOfWar().measure(toys.evidence(references=2))
    assert found.value is not None
    assert found.controls["original"] < 0.05 < 0.9 < found.value
    assert TugOfWar().measure(toys.evidence(toys.retrained()[0])).value == 1.0


def test_needs_all_three_sets() -> None:
    with pytest.raises(Missing, match="needs the sets retain"):
        TugOfWar().measure(toys.without(toys.evidence(), "retain"))
