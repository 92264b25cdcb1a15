from __future__ import annotations

from dataclasses import replace

import pytest
import toy_evidence as toys

from forgetkit.auditing.evidence import Missing
from forgetkit.losses import unlearning_score
from forgetkit.metrics.us import UnlearningScore


@pytest.mark.parametrize(
    ("retain", "forget", "expected"),
    [
        (100, 0, 1.0),
        (0, 100, 0.0),
        (100, 100, 0.5),
        (0, 0, 0.5),
        (50, 50, 0.377541),
        (90, 10, 0.849455),
        (92.07, 96.70, 0.449460),
        (91.98, 0, 0.939040),
        (93.53, 0, 0.950443),
        (44.61, 52.30, 0.341458),
    ],
)
def test_pinned(retain: float, forget: float, expected: float) -> None:
    assert unlearning_score(retain / 100, forget / 100) == pytest.approx(expected, abs=1e-6)


def test_every_model_is_scored_on_test_samples() -> None:
    found = UnlearningScore().measure(toys.evidence())
    kept, gone = (toys.patched().outputs[n] for n in ("test_retain", "test_forget"))
    expected = unlearning_score(
        float(kept.right.double().mean()), float(gone.right.double().mean())
    )
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.interval is not None
    assert found.interval[0] <= expected <= found.interval[1] + 1e-12
    assert found.controls["original"] < 0.55 < found.controls["retrained"]
    assert found.samples == 240


def test_single_samples_have_no_score() -> None:
    with pytest.raises(Missing, match="is defined for whole classes"):
        UnlearningScore().measure(replace(toys.evidence(), goal="instances"))
