from __future__ import annotations

import pytest
import torch
import toy_evidence as toys
from scipy.stats import ks_2samp
from torch import Generator

from forgetkit.auditing.evidence import Evidence, Outputs, Subject
from forgetkit.metric import Verdict
from forgetkit.metrics.streisand import Streisand


def test_as_scipy() -> None:
    found = Streisand().measure(toys.evidence())
    pair = (
        toys.patched().outputs[name].log_probs.exp().max(dim=1).values.numpy()
        for name in ("forget", "test_forget")
    )
    assert found.value == pytest.approx(float(ks_2samp(*pair).pvalue), abs=1e-9)


def answers(sharpness: float, seed: int, samples: int = 200) -> Outputs:
    logits = torch.randn(samples, 4, generator=Generator().manual_seed(seed))
    return toys.outputs(sharpness * logits, torch.zeros(samples, dtype=torch.int64))


@pytest.mark.parametrize(
    ("forget", "retrained", "verdict"),
    [
        (1.0, 1.0, "as retrain"),
        (3.0, 1.0, "residual"),
        (0.2, 1.0, "over-forgotten"),
        (3.0, 3.0, "not decidable"),
    ],
)
def test_verdict(forget: float, retrained: float, verdict: Verdict) -> None:
    model = toys.original().model
    subjects = {
        role: Subject(model, {"forget": answers(s, 1), "test_forget": answers(1.0, 2)}, None)
        for role, s in (("unlearned", forget), ("retrained", retrained))
    }
    found = Streisand().measure(Evidence(subjects, {}, "instances", (0,), 4))  # type: ignore[arg-type]  # roles
    assert found.verdict == verdict
    assert found.value is not None
    assert (found.value < 0.01) == (verdict != "as retrain")


@pytest.mark.parametrize("sharpness", [1.0, 50.0])
@pytest.mark.parametrize(
    ("forget", "unseen", "decided"), [(9, 200, False), (200, 9, False), (10, 10, True)]
)
def test_few_samples_decide_nothing(
    forget: int, unseen: int, decided: bool, sharpness: float
) -> None:
    def subject(own: float) -> Subject:
        splits = {"forget": answers(own, 1, forget), "test_forget": answers(0.1, 2, unseen)}
        return Subject(toys.original().model, splits, None)

    subjects = {"unlearned": subject(sharpness), "retrained": subject(0.1)}
    found = Streisand().measure(Evidence(subjects, {}, "instances", (0,), 4))  # type: ignore[arg-type]  # roles
    assert (found.verdict != "not decidable") == decided
    assert ("too few to decide" in found.note) != decided
