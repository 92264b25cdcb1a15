from __future__ import annotations

import pytest
import torch
import toy_evidence as toys
from torch import Generator
from torchmetrics.classification import MulticlassAccuracy

from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.metrics.top_k_accuracy import TopKAccuracy, top_k_hits


@pytest.mark.parametrize("k", [1, 2, 3])
def test_as_torchmetrics(k: int) -> None:
    generator = Generator().manual_seed(3)
    logits = torch.randn(50, 5, generator=generator)
    labels = torch.randint(5, (50,), generator=generator)
    subject = Subject(toys.original().model, {"forget": toys.outputs(logits, labels)}, None)
    evidence = Evidence({"unlearned": subject}, {}, "instances", (0,), 5)
    expected = MulticlassAccuracy(num_classes=5, top_k=k, average="micro")(logits, labels)
    assert TopKAccuracy(k=k).measure(evidence).value == pytest.approx(float(expected), abs=1e-6)


def test_second_guesses_show_what_a_head_edit_hides() -> None:
    found = TopKAccuracy(k=2).measure(toys.evidence())
    assert found.value is not None
    assert found.value > 0.5
    assert found.controls["retrained"] < found.value
    assert found.verdict == "residual"


def test_all_classes_are_too_many() -> None:
    with pytest.raises(Missing, match="needs more than 4 classes"):
        TopKAccuracy(k=4).measure(toys.evidence())


def test_of_equal_logits_the_lower_index_comes_first() -> None:
    equal = toys.outputs(torch.zeros(4, 4), torch.arange(4))
    assert top_k_hits(equal, 1).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert top_k_hits(equal, 3).tolist() == [1.0, 1.0, 1.0, 0.0]


def test_the_first_guess_is_the_prediction() -> None:
    draws = Generator().manual_seed(0)
    logits = torch.randint(3, (200, 5), generator=draws).float()  # many of them equal
    logits[:20, 2] = -torch.inf
    found = toys.outputs(logits, torch.randint(5, (200,), generator=draws))
    assert torch.equal(top_k_hits(found, 1), found.right.double())
