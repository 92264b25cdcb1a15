from __future__ import annotations

import pytest
import torch
import toy_evidence as toys
from torch import nn

from forgetkit.auditing.evidence import Evidence, Subject
from forgetkit.metrics.activation_distance import ActivationDistance

P = toys.outputs(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log(), torch.tensor([0, 1]))
Q = toys.outputs(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]).log(), torch.tensor([0, 1]))


@pytest.mark.parametrize(("norm", "expected"), [("l2", 0.257794), ("l1", 0.4), ("rms", 0.282843)])
def test_pinned(norm: str, expected: float) -> None:
    model = toys.original().model
    subjects = {
        "unlearned": Subject(model, {"forget": P}, None),
        "retrained": Subject(model, {"forget": Q}, None),
    }
    found = ActivationDistance(norm=norm).measure(Evidence(subjects, {}, "instances", (0,), 3))  # type: ignore[arg-type]  # roles
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.settings == {"norm": norm}


def test_the_original_is_farther_than_a_second_retrained_model() -> None:
    found = ActivationDistance().measure(toys.evidence(references=2))
    assert found.controls["original"] > found.controls["retrained"] > 0


@pytest.mark.parametrize(("norm", "verdict"), [("l2", "as retrain"), ("rms", "residual")])
def test_interval_and_verdict_are_of_the_norm_that_is_printed(norm: str, verdict: str) -> None:
    def answers(*shares: float) -> Subject:
        share = torch.tensor(shares)
        logits = torch.stack([share, 1 - share], dim=1).log()
        outputs = toys.outputs(logits, torch.zeros(len(shares), dtype=torch.int64))
        return Subject(nn.Identity(), {"forget": outputs}, None)

    # a few samples far from the first retrained model; the others are a little off everywhere
    few, first, second, third = (
        answers(*[0.9999] * 18, *[0.5] * 42), answers(*[0.5] * 60), answers(*[0.62] * 60),
        answers(*[0.615] * 60),
    )  # fmt: skip
    subjects = {"unlearned": few, "retrained": first}
    found = ActivationDistance(norm=norm).measure(
        Evidence(subjects, {}, "instances", (0,), 2, references=(first, second, third))  # type: ignore[arg-type]  # roles
    )
    assert found.value is not None
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    assert found.value == pytest.approx(0.7071 * (0.3 if norm == "l2" else 0.3**0.5), abs=1e-3)
    assert found.verdict == verdict
