from __future__ import annotations

import math

import pytest
import torch
import toy_evidence as toys
from scipy.stats import wasserstein_distance
from torch import Tensor

from forgetkit.auditing.evidence import Evidence, Outputs, Subject
from forgetkit.metrics.loss_distance import LossDistance


def with_losses(losses: list[float]) -> Outputs:
    """Two classes; the cross-entropy of label 0 is the number given."""
    first = torch.tensor([-loss for loss in losses], dtype=torch.float64)
    logits: Tensor = torch.stack([first, torch.log1p(-first.exp())], dim=1)
    return toys.outputs(logits, torch.zeros(len(losses), dtype=torch.int64))


def test_pinned() -> None:
    outputs = {
        "forget": with_losses([0.1, 0.2, 0.3, 0.4]),
        "test_forget": with_losses([0.5, 0.6, 0.7, 0.8]),
    }
    subject = Subject(toys.original().model, outputs, None)
    found = LossDistance().measure(Evidence({"unlearned": subject}, {}, "instances", (0,), 2))
    assert found.value == pytest.approx(0.4, abs=1e-6)


def test_as_scipy() -> None:
    found = LossDistance().measure(toys.evidence())
    pair = (toys.patched().outputs[n].losses.numpy() for n in ("forget", "test_forget"))
    assert found.value == pytest.approx(float(wasserstein_distance(*pair)), abs=1e-9)
    assert set(found.controls) == {"original", "retrained"}


def test_removed_rows_have_finite_losses() -> None:
    logits = torch.tensor([[-math.inf, 0.0], [-math.inf, 1.0]])
    gone = toys.outputs(logits, torch.tensor([0, 0]))
    subject = Subject(toys.original().model, {"forget": gone, "test_forget": gone}, None)
    found = LossDistance().measure(Evidence({"unlearned": subject}, {}, "instances", (0,), 2))
    assert found.value == 0.0
    assert found.details["mean_loss"] == {"forget": 400.0, "unseen": 400.0}
