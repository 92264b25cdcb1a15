from __future__ import annotations

import pytest
import toy_evidence as toys

from forgetkit.auditing.evidence import Missing
from forgetkit.metrics.relearn_time import RelearnTime

QUICK = RelearnTime(lr=0.03, batch_size=240, epochs=30, eval_every=3)


def test_a_head_edit_comes_back_before_a_retrained_model() -> None:
    found = QUICK.measure(toys.evidence())
    assert found.value is not None
    assert found.details["cap"] == 30  # 240 samples, one step a pass
    curves = found.details["curves"]
    assert isinstance(curves, dict)
    assert curves["unlearned"][-1][0] == found.value
    assert curves["unlearned"][-1][1] <= found.details["target"]
    assert curves["unlearned"][-2][1] > found.details["target"]
    # at every look the retrained model is behind
    for mine, other in zip(curves["unlearned"], curves["retrained"], strict=False):
        assert mine[1] < other[1]


def test_the_original_needs_no_step() -> None:
    assert QUICK.measure(toys.evidence(toys.original(), roles=("original",))).value == 0.0


def test_a_capped_run_has_no_number() -> None:
    found = RelearnTime(steps=2).measure(toys.evidence(roles=("original",)))
    assert found.value is None
    assert found.note.startswith(">2 steps")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Missing, match="needs the original model"):
        QUICK.measure(toys.evidence(roles=("retrained",)))
    with pytest.raises(Missing, match="needs training samples to keep"):
        QUICK.measure(toys.without(toys.evidence(), "retain"))
