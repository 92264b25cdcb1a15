from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torchmetrics.classification import MulticlassAccuracy

from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.metrics.class_accuracy import ClassAccuracy

FOUR = toys.outputs(
    torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 1, 2], [2, 0, 0]]), torch.tensor([0, 0, 0, 1])
)


def made(goal: str = "instances", forget: tuple[int, ...] = (0,)) -> Evidence:
    subject = Subject(toys.original().model, {"test_retain": FOUR}, None)
    return Evidence({"unlearned": subject}, {}, goal, forget, 3, class_names=("cat", "dog", "owl"))


def test_pinned_and_as_torchmetrics() -> None:
    found = ClassAccuracy().measure(made())
    assert found.details["accuracy"] == {"unlearned": [pytest.approx(2 / 3), 0.0]}
    each = MulticlassAccuracy(num_classes=3, average=None)(FOUR.logits, FOUR.labels)
    assert each.tolist() == pytest.approx([0.666667, 0, 0], abs=1e-6)
    assert found.details["classes"] == [0, 1]
    assert found.value == 0.0
    assert found.details["worst_class"] == "dog"
    assert "dog" in found.note
    assert found.samples == 1


def test_a_forgotten_class_is_not_the_worst() -> None:
    assert ClassAccuracy().measure(made("classes", (1,))).details["worst_class"] == "cat"
    with pytest.raises(Missing, match="a class that is kept"):
        ClassAccuracy().measure(made("classes", (0, 1, 2)))


def test_the_largest_drop_is_named() -> None:
    found = ClassAccuracy().measure(toys.evidence())
    before, after = (found.details["accuracy"][r] for r in ("original", "unlearned"))  # type: ignore[index]  # a mapping
    drops = [b - a for b, a in zip(before[:3], after[:3], strict=True)]
    assert found.details["largest_drop"] == pytest.approx(max(drops), abs=1e-12)
    assert found.details["samples"] == [60, 60, 60, 60]
    assert found.interval is not None


def test_training_samples_stand_in() -> None:
    found = ClassAccuracy().measure(toys.without(toys.evidence(), "test_retain"))
    assert found.details["sets"] == ["forget", "retain"]
    bare = toys.without(toys.without(toys.evidence(), "test_forget"), "test_retain")
    found = ClassAccuracy().measure(replace(bare, goal="instances"))
    assert found.details["sets"] == ["forget", "retain"]
