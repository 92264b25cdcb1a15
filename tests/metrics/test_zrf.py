from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys

from forgetkit.auditing.evidence import Evidence, Missing, Role, Subject
from forgetkit.metrics.zrf import ZRF

P = toys.outputs(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log(), torch.tensor([0, 1]))
Q = toys.outputs(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]).log(), torch.tensor([0, 1]))
ROLES: tuple[Role, ...] = ("original", "retrained", "untrained")


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
    found = ZRF().measure(toys.evidence(toys.original(), roles=ROLES, references=4))
    assert found.value == found.controls["original"]
    assert found.verdict == "residual"
    noise = ZRF().measure(toys.evidence(toys.untrained(), roles=ROLES, references=4))
    assert noise.value == pytest.approx(1.0)
    assert noise.verdict == "over-forgotten"
    alone = ZRF().measure(toys.evidence(toys.original(), roles=ROLES))
    assert alone.verdict == "not decidable"


def test_a_mask_alone_changes_nothing() -> None:
    """What a masked head says of the forgotten class was put there by hand."""
    subject = toys.retrained()[1]
    found = subject.outputs["forget"]
    logits = found.logits.clone()
    logits[:, toys.GONE] = -50.0
    masked = replace(subject, outputs={"forget": replace(found, logits=logits)})
    before, after = (
        ZRF().measure(toys.evidence(one, roles=ROLES, references=3, head_masked=True))
        for one in (subject, masked)
    )
    assert after.value == pytest.approx(before.value)
    assert after.verdict == before.verdict == "as retrain"
    assert after.controls["retrained"] == pytest.approx(kept_zrf(toys.retrained()[0]))
    assert "over the other classes" in after.note


def kept_zrf(subject: Subject) -> float:
    left, right = (
        one.outputs["forget"].logits[:, [c for c in range(4) if c != toys.GONE]].double().softmax(1)
        for one in (subject, toys.untrained())
    )
    middle = (left + right) / 2
    divergence = (left * (left / middle).log2() + right * (right / middle).log2()).sum(1) / 2
    return 1 - float(divergence.mean())


def test_needs_untrained_weights() -> None:
    with pytest.raises(Missing, match="needs the untrained model"):
        ZRF().measure(toys.evidence())
