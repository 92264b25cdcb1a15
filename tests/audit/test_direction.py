"""Whether a model that knows more is told from one that knows less where sureness misleads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from forgetkit.auditing.direction import knows_labels_better
from forgetkit.auditing.evidence import Evidence, NotApplicable, Outputs, Role, Subject
from forgetkit.metric import Metric
from forgetkit.metrics.entropy import Entropy
from forgetkit.metrics.mia_confidence import MiaConfidence
from forgetkit.metrics.separability import Separability
from forgetkit.metrics.streisand import Streisand
from forgetkit.metrics.zrf import ZRF

SAMPLES = 60
OLD = torch.ones(SAMPLES, dtype=torch.int64)
"""The label that is to be forgotten: 1; the true class is 0."""


def model(old: float, true: float, classes: int, seed: int) -> Subject:
    logits = 0.1 * torch.randn(SAMPLES, classes, generator=Generator().manual_seed(seed))
    logits[:, 0] += true
    logits[:, 1] += old
    found = Outputs(logits, OLD, None, torch.arange(SAMPLES))
    return Subject(nn.Identity(), dict.fromkeys(("forget", "test_forget"), found), None)


def evidence(goal: str, classes: int, own: Subject) -> Evidence:
    """The retrained models are surest: they answer class 0 alone."""
    retrained = [model(0.0, 6.0, classes, seed) for seed in (1, 2)]
    subjects: dict[Role, Subject] = {
        "unlearned": own, "retrained": retrained[0], "untrained": model(0.0, 0.0, classes, 3),
    }  # fmt: skip
    return Evidence(subjects, {}, goal, (1,), classes, references=retrained)


@pytest.mark.parametrize("metric", [Entropy(), ZRF()], ids=lambda metric: metric.card.slug)
@pytest.mark.parametrize(("goal", "classes"), [("relabel", 4), ("depoison", 4), ("classes", 2)])
def test_a_model_that_still_answers_the_old_label_is_residual_though_less_sure(
    metric: Metric, goal: str, classes: int
) -> None:
    unsure = evidence(goal, classes, model(4.0, 2.0, classes, 4))
    assert metric.measure(unsure).verdict == "residual"
    assert metric.measure(evidence(goal, classes, model(0.0, 6.0, classes, 1))).verdict == (
        "as retrain"
    )
    # a model that pushes the label below what a retrained one says of it
    pushed = evidence(goal, classes, model(-9.0, 3.0, classes, 4))
    assert metric.measure(pushed).verdict == "over-forgotten"


def test_elsewhere_who_is_less_sure_has_forgotten_too_much() -> None:
    assert Entropy().measure(evidence("classes", 4, model(4.0, 3.0, 4, 4))).verdict == (
        "over-forgotten"
    )


def test_without_labels_or_behind_a_mask_the_side_is_not_known() -> None:
    known = evidence("relabel", 4, model(4.0, 2.0, 4, 4))
    assert knows_labels_better(known, "forget") is True
    assert knows_labels_better(replace(known, head_masked=True), "forget") is None
    bare = {
        role: replace(
            one, outputs={n: replace(o, known_labels=None) for n, o in one.outputs.items()}
        )
        for role, one in known.subjects.items()
    }
    unknown = replace(known, subjects=bare, references=(bare["retrained"],))
    assert knows_labels_better(unknown, "forget") is None
    assert Entropy().measure(unknown).verdict == "not decidable"


def test_over_a_single_class_everybody_is_sure() -> None:
    masked = replace(evidence("classes", 2, model(4.0, 2.0, 2, 4)), head_masked=True)
    assert Entropy().measure(masked).verdict == "not decidable"


@pytest.mark.parametrize("goal", ["relabel", "depoison"])
@pytest.mark.parametrize("metric", [Streisand(), MiaConfidence()], ids=lambda m: m.card.slug)
def test_sureness_alone_is_not_asked_about_wrong_labels(metric: Metric, goal: str) -> None:
    with pytest.raises(NotApplicable, match="those of this request were wrong"):
        metric.measure(evidence(goal, 4, model(4.0, 2.0, 4, 4)))


def test_separability_looks_for_forgotten_classes_alone() -> None:
    with pytest.raises(NotApplicable, match="looks for forgotten classes"):
        Separability().measure(evidence("instances", 4, model(4.0, 2.0, 4, 4)))
