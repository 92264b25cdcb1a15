from __future__ import annotations

import pytest
import torch
import toy_evidence as toys

from forgetkit.auditing.evidence import Evidence, Missing, Role, Subject
from forgetkit.metrics.zrf import ZRF

P = toys.outputs(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log(), torch.tensor([0, 1]))
Q = toys.outputs(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]).log(), torch.tensor([0, 1]))


def test_pinned_in_bits() -> None:
    model = toys.original().model
    subjects = {
        "unlearned": Subject(model, {"forget": P}, None),
        "untrained": Subject(model, {"forget": Q}, None),
    }
    found = ZRF().measure(Evidence(subjects, {}, "instances", (0,), 3))  # type: ignore[arg-type]  # roles
    assert found.value == pytest.approx(0.957382, abs=1e-6)
    assert found.verdict == "not decidable"


def test_the_target_is_the_retrained_models_value() -> None:
    roles: tuple[Role, ...] = ("original", "retrained", "untrained")
    found = ZRF().measure(toys.evidence(toys.original(), roles=roles))
    assert found.value == found.controls["original"]
    assert found.verdict == "residual"
    noise = ZRF().measure(toys.evidence(toys.untrained(), roles=roles))
    assert noise.value == pytest.approx(1.0)
    assert noise.verdict == "over-forgotten"


def test_needs_untrained_weights() -> None:
    with pytest.raises(Missing, match="needs the untrained model"):
        ZRF().measure(toys.evidence())
