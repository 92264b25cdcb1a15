"""A model that ends in a softmax is told apart from one that returns logits."""

from __future__ import annotations

import torch
from torch import nn

from forgetkit import forget
from forgetkit.dryrun.outputs import are_probabilities
from forgetkit.testing import toy


def test_rows_that_sum_to_one_without_a_negative_entry_are_probabilities() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert are_probabilities(logits.softmax(dim=1))
    assert are_probabilities(logits.softmax(dim=1).half())
    assert not are_probabilities(logits)
    assert not are_probabilities(logits.abs())
    assert not are_probabilities(logits - logits.mean(dim=1, keepdim=True) + 1 / 3)
    assert not are_probabilities(torch.ones(4, 1))


def test_a_softmax_at_the_end_is_noted() -> None:
    some = toy("cnn")
    for model, noted in ((some.model, False), (nn.Sequential(some.model, nn.Softmax(1)), True)):
        request = forget(model).classes([3]).using("neggrad", epochs=1, lr=1e-6).on("cpu")
        notes = request.run(some.loader(), guard=None).notes
        assert any("look like probabilities" in note for note in notes) == noted
