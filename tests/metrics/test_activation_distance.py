from __future__ import annotations

import pytest
import torch
import toy_evidence as toys

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
