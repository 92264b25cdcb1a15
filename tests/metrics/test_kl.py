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


def test_verdict_needs_three_retrained_models() -> None:
    for few, words in ((1, "1 was given"), (2, "2 were given")):
        found = KLToRetrained().measure(toys.evidence(toys.original(), references=few))
        assert found.verdict == "not decidable"
        assert "3 retrained models are needed" in found.note
        assert words in found.note
    kept = KLToRetrained().measure(toys.evidence(toys.original(), references=3))
    assert kept.verdict == "residual"
    assert "are needed" not in kept.note
    same = KLToRetrained().measure(toys.evidence(toys.retrained()[0], references=3))
    assert same.value == 0.0
    assert same.verdict == "as retrain"


def test_every_further_retrained_model_is_held_against() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(40, dtype=torch.int64)
    base = torch.randn(40, 3, generator=generator)

    def moved(by: float) -> Subject:
        logits = base + by * torch.tensor([1.0, 0.0, 0.0])
        return Subject(nn.Identity(), {"forget": toys.outputs(logits, labels)}, None)

    first, near, other, far = moved(0.0), moved(0.2), moved(-0.2), moved(2.0)
    verdicts = []
    for references in ((first, near, other), (first, near, other, far)):
        evidence = Evidence(
            {"unlearned": moved(1.0), "retrained": first}, {}, "instances", (0,), 3, references
        )
        verdicts.append(KLToRetrained().measure(evidence).verdict)
    assert verdicts == ["residual", "as retrain"]


def test_the_farthest_of_models_that_all_lie_apart_is_not_accused() -> None:
    """Farther from the first than the others are, but not farther than one more might be."""
    labels = torch.zeros(40, dtype=torch.int64)
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) / 10

    def at(*logits: float) -> Subject:
        found = toys.outputs(noise + torch.tensor(logits), labels)
        return Subject(nn.Identity(), {"forget": found}, None)

    references = at(0.0, 0.0, 0.0), at(1.0, 0.0, 0.0), at(0.0, 1.2, 0.0)
    verdicts = []
    for own in (at(0.0, 0.0, 1.4), at(0.0, 0.0, 9.0)):
        evidence = Evidence(
            {"unlearned": own, "retrained": references[0]}, {}, "instances", (0,), 3, references
        )
        verdicts.append(KLToRetrained().measure(evidence).verdict)
    assert verdicts == ["as retrain", "over-forgotten"]


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
