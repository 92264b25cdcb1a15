from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torch import nn

from forgetkit.auditing.evidence import Evidence, Missing, Outputs, Subject
from forgetkit.losses import unlearning_score
from forgetkit.metric import Finding
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


def scored(kept: int, gone: int, samples: int) -> Finding:
    """Score a model that is right on so many of the samples of either kind."""

    def answers(right: int) -> Outputs:
        logits = torch.tensor([[9.0, 0.0]] * right + [[0.0, 9.0]] * (samples - right))
        return toys.outputs(logits, torch.zeros(samples, dtype=torch.int64))

    splits = {"test_retain": answers(kept), "test_forget": answers(gone)}
    subject = Subject(nn.Identity(), splits, None)
    return UnlearningScore().measure(Evidence({"unlearned": subject}, {}, "classes", (0,), 2))


@pytest.mark.parametrize(("kept", "gone"), [(40, 0), (37, 0), (40, 3), (0, 40), (37, 3)])
def test_the_interval_has_a_width_and_holds_the_score(kept: int, gone: int) -> None:
    found = scored(kept, gone, 40)
    assert found.value is not None
    assert found.interval is not None
    low, high = found.interval
    assert low <= found.value <= high
    assert high - low > 0.05


def test_accuracies_of_one_and_zero_leave_the_ends_of_their_intervals() -> None:
    found = scored(100, 0, 100)
    assert found.interval == pytest.approx(
        (unlearning_score(1 - 0.036993, 0.036993), 1.0), abs=1e-5
    )


def test_few_samples_have_no_interval() -> None:
    assert scored(8, 1, 9).interval is None


def test_single_samples_have_no_score() -> None:
    with pytest.raises(Missing, match="is defined for whole classes"):
        UnlearningScore().measure(replace(toys.evidence(), goal="instances"))
