from __future__ import annotations

import json

import pytest
import torch
import toy_evidence as toys
from sklearn.metrics import confusion_matrix as scikit_matrix
from torchmetrics.classification import MulticlassConfusionMatrix

from forgetkit.auditing.evidence import Evidence, Subject
from forgetkit.auditing.readings import together
from forgetkit.metrics.confusion import WHOLE, Confusion, confusion_cells


def test_spread_pinned() -> None:
    logits = torch.eye(3)[[0] * 8 + [1, 2]]
    found = toys.outputs(logits, torch.zeros(10, dtype=torch.int64))
    subject = Subject(toys.original().model, {"forget": found}, None)
    result = Confusion().measure(Evidence({"unlearned": subject}, {}, "instances", (0,), 3))
    assert result.value == pytest.approx(0.581672, abs=1e-6)
    assert result.details["predicted"] == {"unlearned": pytest.approx([0.8, 0.1, 0.1])}
    assert result.details["matrix"] == {}


def test_matrix_as_scikit_learn_and_torchmetrics() -> None:
    found = together(toys.evidence(), "unlearned", ("test_forget", "test_retain"))
    own = confusion_cells(found, 4).matrix()
    expected = scikit_matrix(found.labels, found.predicted, normalize="true")
    assert own.numpy() == pytest.approx(expected, abs=1e-12)
    other = MulticlassConfusionMatrix(num_classes=4, normalize="true")(found.logits, found.labels)
    assert own.numpy() == pytest.approx(other.numpy(), abs=1e-6)


def test_a_class_without_samples_has_zeros() -> None:
    found = toys.outputs(torch.eye(3)[[0, 1]], torch.tensor([0, 1]))
    assert confusion_cells(found, 3).matrix()[2].tolist() == [0.0, 0.0, 0.0]


def test_distance_to_every_retrained_model() -> None:
    same = Confusion().measure(toys.evidence(toys.retrained()[0], references=3))
    apart = same.details["js_to_retrained"]
    assert isinstance(apart, list)
    assert len(apart) == 3
    assert apart[0] == 0.0
    assert max(apart) <= 1.0


def test_masked_classes_are_left_out() -> None:
    found = Confusion().measure(toys.evidence(toys.masked(), head_masked=True))
    assert found.details["classes"] == [0, 1, 2]


@pytest.mark.parametrize("classes", [WHOLE, WHOLE + 1, 21_000])
def test_a_matrix_of_many_classes_is_written_without_its_zeros(classes: int) -> None:
    logits = torch.zeros(12, classes)
    logits[range(12), [0] * 6 + [classes - 1] * 6] = 1.0
    found = toys.outputs(logits, torch.tensor([0] * 8 + [classes - 1] * 4))
    subject = Subject(toys.original().model, {"forget": found, "test_retain": found}, None)
    result = Confusion().measure(Evidence({"unlearned": subject}, {}, "instances", (0,), classes))
    if classes == WHOLE:
        assert "cells" not in result.details
        return
    assert "matrix" not in result.details
    assert result.details["cells"] == {
        "unlearned": {
            "size": classes,
            "true": [0, 0, classes - 1],
            "predicted": [0, classes - 1, classes - 1],
            "share": [0.75, 0.25, 1.0],
        }
    }
    assert len(json.dumps(result.to_json())) < 40 * classes
