from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torch import nn
from torchmetrics import KLDivergence

from forgetkit.auditing.divergence import restricted
from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.auditing.to_reference import distance_finding
from forgetkit.metrics.js import JSToRetrained
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


def euclid(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Return how far logits lie apart, those of the first class taken for 0, (samples,)."""
    left, right = (found[:, 1:] - found[:, :1] for found in (reference, model))
    apart: torch.Tensor = (left - right).norm(dim=1)
    return apart


def judged(own: torch.Tensor, *references: torch.Tensor) -> str:
    """Return the verdict on points (samples, 3) that stand for answers."""

    def at(points: torch.Tensor) -> Subject:
        logits = torch.cat([torch.zeros(len(points), 1), points], dim=1)
        found = toys.outputs(logits, torch.zeros(len(points), dtype=torch.int64))
        return Subject(nn.Identity(), {"forget": found}, None)

    others = tuple(map(at, references))
    subjects = {"unlearned": at(own), "retrained": others[0]}
    evidence = Evidence(subjects, {}, "instances", (0,), 4, others)  # type: ignore[arg-type]  # roles
    return distance_finding(KLToRetrained(), evidence, euclid).verdict


def test_a_distance_that_two_samples_make_is_not_sure() -> None:
    references = [torch.tensor([[lead, 0.0, 0.0]]).expand(60, 3) for lead in (0.0, 0.10, 0.11)]
    few = torch.zeros(60, 3)
    few[:2, 0] = -100.0  # the mean is far beyond those of the retrained models
    assert judged(few, *references) == "as retrain"
    assert judged(few - 3.0, *references) in ("residual", "over-forgotten")


def test_a_retrained_model_as_far_from_the_first_takes_the_alarm_away() -> None:
    """Of three in a triangle; the audited one lies on the other side, far from the other two."""
    corners = torch.tensor([[0.0, 0, 0], [0.9, 0, 0], [0.5, math.sqrt(0.75), 0]])
    references = [corner.expand(60, 3) for corner in corners]
    opposite = torch.tensor([-math.sqrt(0.75), -0.5, 0.0]).expand(60, 3)
    assert judged(opposite * 0.999, *references) == "as retrain"
    assert judged(opposite * 1.2, *references) in ("residual", "over-forgotten")


def test_a_model_amid_the_retrained_ones_is_not_accused() -> None:
    """Nearer to all than they are to each other, though farther from the first than any other."""
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) / 1000
    labels = torch.zeros(200, dtype=torch.int64)

    def answers(*probs: float) -> Subject:
        found = toys.outputs(torch.tensor(probs).log() + noise, labels)
        return Subject(nn.Identity(), {"forget": found}, None)

    references = (
        answers(0.04, 0.9, 0.03, 0.03), answers(0.04, 0.03, 0.9, 0.03),
        answers(0.04, 0.03, 0.03, 0.9),
    )  # fmt: skip
    own = answers(0.0001, 0.0001, 0.4999, 0.4999)
    evidence = Evidence(
        {"unlearned": own, "retrained": references[0]}, {}, "instances", (0,), 4, references
    )
    found = JSToRetrained().measure(evidence)
    among = found.details["among_retrained"]
    away = found.details["to_every_retrained"]
    assert isinstance(among, list)
    assert isinstance(away, float)
    assert away < min(among)
    assert found.verdict == "as retrain"


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
