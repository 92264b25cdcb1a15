"""Weights that fall with the loss, and the ascent that uses them."""

from __future__ import annotations

import pytest
import torch

from forgetkit.saliency import forget_saliency
from forgetkit.weighted_ascent import FLOOR, loss_weights, weighted_ascent


def test_weights_are_pinned() -> None:
    weights = loss_weights(torch.tensor([0.5, 1.0, 4.0]), 0.5)
    assert weights.tolist() == pytest.approx([1.455844, 1.029437, 0.514719], abs=1e-6)
    assert loss_weights(torch.tensor([0.5, 1.0, 4.0]), 0.0).tolist() == [1.0, 1.0, 1.0]


def test_a_loss_of_zero_counts_as_the_floor() -> None:
    found = loss_weights(torch.tensor([0.0, 1.0]), 0.5)
    assert torch.equal(found, loss_weights(torch.tensor([FLOOR, 1.0]), 0.5))
    assert bool(torch.isfinite(found).all())


def test_the_gradient_does_not_pass_through_the_weights() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], requires_grad=True)
    labels = torch.tensor([0, 2])
    weighted_ascent(logits, labels, 0.5).backward()
    losses = [-float(logits.detach()[i].log_softmax(0)[y]) for i, y in enumerate([0, 2])]
    raw = [loss**-0.5 for loss in losses]
    mean = sum(raw) / 2
    onehot = torch.eye(3)[labels]
    errors = logits.detach().softmax(1) - onehot
    expected = torch.stack([-r / mean / 2 * e for r, e in zip(raw, errors, strict=True)])
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_a_loss_beyond_the_cap_no_longer_counts() -> None:
    logits = torch.tensor([[0.0, 0.0], [-40.0, 0.0]], requires_grad=True)
    weighted_ascent(logits, torch.tensor([0, 0]), 0.5).backward()
    assert logits.grad is not None
    assert float(logits.grad[0].abs().max()) > 0.1
    assert logits.grad[1].tolist() == [0.0, 0.0]


def test_an_empty_batch_gives_zero() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    assert float(weighted_ascent(logits, torch.zeros(0, dtype=torch.long), 0.5).detach()) == 0.0


def test_the_mask_compares_the_two_fishers() -> None:
    forget = {"a": torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0])}
    retain = {"a": torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])}
    assert forget_saliency(forget, retain, 1.0)["a"].tolist() == [True, True, False, True, False]
    assert forget_saliency(forget, retain, 2.0)["a"].tolist() == [True, False, False, False, False]
