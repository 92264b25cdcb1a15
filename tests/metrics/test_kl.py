from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torch import nn
from torchmetrics import KLDivergence

from forgetkit.auditing.divergence import restricted
from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.metrics.kl import KLToRetrained

P = toys.outputs(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log(), torch.tensor([0, 1]))
Q = toys.outputs(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]).log(), torch.tensor([0, 1]))


def pair() -> Evidence:
    model = toys.original().model
    return Evidence(
        {"unlearned": Subject(model, {"forget": P}, None),
         "retrained": Subject(model, {"forget": Q}, None)},
        {}, "instances", (0,), 3,
    )  # fmt: skip


def test_the_reference_comes_first() -> None:
    assert KLToRetrained().measure(pair()).value == pytest.approx(0.131180, abs=1e-6)


def test_as_torchmetrics() -> None:
    found = KLToRetrained().measure(toys.evidence())
    own, reference = (
        subject.outputs["forget"].log_probs for subject in (toys.patched(), toys.retrained()[0])
    )
    expected = float(KLDivergence(log_prob=True)(reference, own))
    assert found.value == pytest.approx(expected, abs=1e-6)


def test_verdict_needs_two_retrained_models() -> None:
    alone = KLToRetrained().measure(toys.evidence(references=1))
    assert alone.verdict == "not decidable"
    assert "second retrained model" in alone.note
    kept = KLToRetrained().measure(toys.evidence(toys.original(), references=2))
    assert kept.verdict == "residual"
    same = KLToRetrained().measure(toys.evidence(toys.retrained()[0], references=2))
    assert same.value == 0.0
    assert same.verdict == "as retrain"


def test_every_further_retrained_model_is_held_against() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(40, dtype=torch.int64)
    base = torch.randn(40, 3, generator=generator)

    def moved(by: float) -> Subject:
        logits = base + by * torch.tensor([1.0, 0.0, 0.0])
        return Subject(nn.Identity(), {"forget": toys.outputs(logits, labels)}, None)

    first, near, far = moved(0.0), moved(0.2), moved(2.0)
    verdicts = []
    for references in ((first, near), (first, near, far), (first, far)):
        evidence = Evidence(
            {"unlearned": moved(1.0), "retrained": first}, {}, "instances", (0,), 3, references
        )
        verdicts.append(KLToRetrained().measure(evidence).verdict)
    assert verdicts == ["residual", "as retrain", "as retrain"]


def test_masked_classes_are_left_out() -> None:
    evidence = toys.evidence(toys.masked(), head_masked=True)
    found = KLToRetrained().measure(evidence)
    left, right = (
        restricted(subject.outputs["forget"].log_probs, (0, 1, 2))
        for subject in (toys.retrained()[0], toys.masked())
    )
    assert found.value == pytest.approx(float((left.exp() * (left - right)).sum(1).mean()))
    assert "over the other classes" in found.note


def test_no_reference_no_number() -> None:
    with pytest.raises(Missing, match="needs the retrained model"):
        KLToRetrained().measure(toys.evidence(roles=("original",)))
    empty = P.take(torch.zeros(0, dtype=torch.int64))
    subject = Subject(toys.original().model, {"forget": empty}, None)
    evidence = replace(pair(), subjects={**pair().subjects, "unlearned": subject})
    with pytest.raises(Missing, match="that set is empty"):
        KLToRetrained().measure(evidence)
