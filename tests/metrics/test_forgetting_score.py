from __future__ import annotations

import pytest
import torch
import toy_evidence as toys

from forgetkit.auditing.evidence import Evidence, Missing, NotApplicable, Subject
from forgetkit.auditing.loss_attack import loss_auc
from forgetkit.membership import forgetting_score
from forgetkit.metric import Metric
from forgetkit.metrics.final_score import FinalScore
from forgetkit.metrics.forgetting_score import ForgettingScore
from forgetkit.metrics.us import UnlearningScore


def test_attacks_the_losses_of_every_model() -> None:
    found = ForgettingScore().measure(toys.evidence(roles=("original",)))
    own, unseen = (toys.patched().outputs[n].losses for n in ("forget", "test_forget"))
    assert found.value == pytest.approx(forgetting_score(own, unseen, seed=0), abs=1e-12)
    assert set(found.controls) == {"original"}
    assert found.samples == 120


def test_auc_pinned() -> None:
    ten = torch.arange(10.0)
    assert loss_auc(ten, ten + 5) == pytest.approx(0.875, abs=1e-12)
    assert loss_auc(ten, ten) == 0.5


def test_several_labels_are_held_against_every_test_sample() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    labels = (logits + 0.5 * torch.randn(30, 4) > 0).float()
    sure = toys.outputs(3 * (2 * labels[:20] - 1), labels[:20])
    unsure = toys.outputs(logits, labels)
    subject = Subject(toys.original().model, {"forget": sure, "test_retain": unsure}, None)
    found = ForgettingScore().measure(Evidence({"unlearned": subject}, {}, "instances", (), 4))
    assert found.details["unseen"] == 30
    assert found.value is not None
    assert found.value > 0.2


@pytest.mark.parametrize("metric", [ForgettingScore(), FinalScore(), UnlearningScore()])
def test_several_labels_have_no_score_where_classes_were_forgotten(metric: Metric) -> None:
    labels = (torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    splits = ("forget", "test_forget", "test_retain")
    outputs = {split: toys.outputs(2 * labels - 1, labels) for split in splits}
    evidence = Evidence(
        {"unlearned": Subject(toys.original().model, outputs, None)}, {}, "classes", (3,), 4
    )
    with pytest.raises(NotApplicable, match="one class each, and these carry several labels"):
        metric.measure(evidence)


def test_few_samples_are_refused() -> None:
    few = toys.patched().outputs["forget"].take(torch.arange(9))
    unseen = toys.patched().outputs["test_forget"]
    subject = Subject(toys.original().model, {"forget": few, "test_forget": unseen}, None)
    with pytest.raises(Missing, match=r"at least 10 samples to forget .* found 9 such pairs in 9"):
        ForgettingScore().measure(Evidence({"unlearned": subject}, {}, "classes", (3,), 4))
