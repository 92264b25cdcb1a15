from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys

from forgetkit.auditing.evidence import Evidence, Missing, Outputs, Subject
from forgetkit.data.sets import StoredSet
from forgetkit.metrics.correction import Correction


def answers(predicted: list[int], labels: list[int]) -> Outputs:
    return toys.outputs(torch.eye(3)[predicted] * 5, torch.tensor(labels))


def made(new: list[int] | None = None) -> Evidence:
    """Four samples of class 1 were labelled 0; one is still called 0."""
    outputs = {
        "forget": answers([0, 1, 1, 2], [0, 0, 0, 0]),
        "retain": answers([0, 1, 2, 2], [0, 1, 1, 2]),
        "test_forget": answers([0, 1, 1, 1, 2], [1, 1, 1, 1, 2]),
    }
    before = {**outputs, "forget": answers([0, 0, 0, 0], [0] * 4)}
    before["retain"] = answers([0, 1, 1, 2], [0, 1, 1, 2])
    model = toys.original().model
    samples = StoredSet(
        torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64),
        new_labels=None if new is None else torch.tensor(new),
    )  # fmt: skip
    return Evidence(
        {"unlearned": Subject(model, outputs, None), "original": Subject(model, before, None)},
        {"forget": samples}, "relabel" if new else "depoison", (0,), 3,
    )  # fmt: skip


def test_old_and_new_labels() -> None:
    found = Correction().measure(made([1, 1, 1, 1]))
    assert found.value == 0.25
    assert found.controls == {"original": 1.0}
    assert found.details["new_label"] == {"unlearned": 0.5, "original": 0.0}
    assert found.details["unseen_old_label"] == 0.25  # one of four unseen samples of class 1
    assert found.details["clean_test"] == {"unlearned": 0.8, "original": 0.8}
    assert found.details["damage"] == 0.25


def test_unknown_right_labels_leave_less() -> None:
    found = Correction().measure(made())
    assert found.value == 0.25
    assert "new_label" not in found.details
    assert "not known" in found.note


def test_is_about_wrong_labels_only() -> None:
    with pytest.raises(Missing, match="is about wrong labels"):
        Correction().measure(replace(made(), goal="instances"))
