from __future__ import annotations

import pytest
import torch
import toy_evidence as toys

from forgetkit.auditing.divergence import histogram_js
from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.membership import jensen_shannon_distance
from forgetkit.metrics.loss_js import LossJS

OWN, UNSEEN = (toys.patched().outputs[name].losses for name in ("forget", "test_forget"))


def test_histograms_in_bits() -> None:
    found = LossJS().measure(toys.evidence())
    assert found.value == pytest.approx(histogram_js(OWN, UNSEEN), abs=1e-12)
    assert set(found.controls) == {"original", "retrained"}


def test_kernel_estimates_as_the_paper_has_them() -> None:
    found = LossJS(density="kde").measure(toys.evidence(roles=()))
    assert found.value == pytest.approx(jensen_shannon_distance(OWN, UNSEEN), abs=1e-12)


def test_few_samples_are_refused() -> None:
    few = toys.patched().outputs["forget"].take(torch.arange(4))
    subject = Subject(toys.original().model, {"forget": few, "test_forget": few}, None)
    with pytest.raises(Missing, match="at least 10 samples"):
        LossJS().measure(Evidence({"unlearned": subject}, {}, "instances", (3,), 4))
