from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torchmetrics.classification import MulticlassAccuracy

from forgetkit.auditing.evidence import Evidence, NotApplicable, Outputs, Subject
from forgetkit.auditing.readings import hits
from forgetkit.metrics.accuracy import Accuracy

FOUR = toys.outputs(
    torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 1, 2], [2, 0, 0]]), torch.tensor([0, 0, 0, 1])
)


def made(found: Outputs, **more: Outputs) -> Evidence:
    subject = Subject(toys.original().model, {"forget": found, **more}, None)
    return Evidence({"unlearned": subject}, {}, "instances", (0,), found.logits.shape[1])


def test_pinned_and_as_torchmetrics() -> None:
    found = Accuracy().measure(made(FOUR))
    assert found.value == pytest.approx(0.5, abs=1e-12)
    assert found.samples == 4
    micro = MulticlassAccuracy(num_classes=3, average="micro")(FOUR.logits, FOUR.labels)
    assert found.value == pytest.approx(float(micro), abs=1e-6)
    assert found.verdict == "not decidable"


def test_several_labels_count_as_their_mean() -> None:
    logits = torch.tensor([[1.0, -1, 1], [-1, -1, -1]])
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    found = Accuracy().measure(made(toys.outputs(logits, labels)))
    assert found.value == pytest.approx(5 / 6, abs=1e-6)


def test_of_several_labels_only_forgotten_ones_count_where_classes_were_forgotten() -> None:
    labels = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]])
    never = toys.outputs(torch.tensor([[1.0, -1, -1, -1], [-1, -1, -1, -1]]), labels)
    once = toys.outputs(torch.tensor([[1.0, -1, 1, -1], [-1, -1, -1, 1]]), labels)
    values = []
    for found in (never, once):
        evidence = replace(made(found, retain=found), goal="classes", forget_classes=(2, 3))
        measured = Accuracy().measure(evidence)
        table = measured.details["sets"]
        assert isinstance(table, dict)
        assert table["forget"]["accuracy"]["unlearned"] == measured.value
        values.append((measured.value, table["retain"]["accuracy"]["unlearned"]))
    assert values == [(0.0, 0.625), (0.25, 0.625)]


def test_every_model_and_set_is_in_the_table() -> None:
    found = Accuracy().measure(toys.evidence(references=3))
    assert found.controls == {"original": 1.0, "retrained": 0.0}
    table = found.details["sets"]
    assert isinstance(table, dict)
    assert set(table) == {"forget", "retain", "test_forget", "test_retain"}
    kept = toys.patched().outputs["test_retain"]
    assert table["test_retain"]["samples"] == len(kept)
    assert table["test_retain"]["accuracy"]["unlearned"] == float(hits(kept).mean())
    low, high = table["test_retain"]["interval"]["unlearned"]
    assert low < float(hits(kept).mean()) <= high


def test_verdict() -> None:
    assert Accuracy().measure(toys.evidence(toys.original())).verdict == "residual"
    assert Accuracy().measure(toys.evidence(toys.retrained()[1])).verdict == "as retrain"
    hidden = Accuracy().measure(toys.evidence(toys.masked(), head_masked=True))
    assert hidden.verdict == "no verdict"
    assert "by construction" in hidden.note


def test_without_the_forgotten_classes_kept_samples_go_to_the_next_one() -> None:
    """A kept sample that was put into the forgotten class 0 counts by its second choice."""
    logits = torch.tensor([[3.0, 2, 1], [3, 1, 2], [0, 2, 1], [0, 1, 2]])
    kept = toys.outputs(logits, torch.tensor([1, 1, 1, 2]))
    gone = toys.outputs(logits, torch.tensor([0, 0, 0, 0]))
    evidence = replace(made(gone, retain=kept), goal="classes")
    tables, values = [], []
    for masked in (False, True):
        found = Accuracy(mask_classes=masked).measure(evidence)
        table = found.details["sets"]
        assert isinstance(table, dict)
        tables.append(table["retain"]["accuracy"]["unlearned"])
        values.append(found.value)
    assert tables == [0.5, 0.75]
    assert values == [0.5, 0.0]
    assert found.verdict == "no verdict"
    assert "left out of the maximum" in found.note
    assert found.details["masked"] is True  # comparisons and radars read this
    assert logits[0, 0] == 3.0  # the evidence is not touched


def test_without_classes_to_leave_out_there_is_nothing_to_mask() -> None:
    with pytest.raises(NotApplicable, match="about single samples"):
        Accuracy(mask_classes=True).measure(made(FOUR))
