"""Weights that fall with the loss, and the ascent that uses them."""

from __future__ import annotations

import math

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


def test_the_floor_is_a_ten_thousandth() -> None:
    # to the power of -1/2: 1e-6 counts as 1e-4 and gives 100, 1e-3 gives 31.6228, 1 gives 1
    found = loss_weights(torch.tensor([1e-6, 1e-3, 1.0]), 0.5)
    total = 100 + 31.6228 + 1
    assert found.tolist() == pytest.approx([300 / total, 94.8683 / total, 3 / total], rel=1e-4)


def test_the_cap_of_the_ascent_is_twice_log_k_plus_five() -> None:
    cap = 2 * math.log(4) + 5  # 7.773 nats for four classes
    # with logits (a, 0, 0, 0) the loss of class 0 is log(1 + 3 exp(-a))
    losses = [cap - 0.01, cap + 0.01]
    logits = torch.tensor([[-math.log((math.exp(loss) - 1) / 3), 0, 0, 0] for loss in losses])
    ascent, beyond = weighted_ascent(logits, torch.zeros(2, dtype=torch.long), 0.0)
    assert beyond == 1
    assert float(ascent) == pytest.approx(-(cap - 0.01) / 2, rel=1e-4)


def test_the_gradient_does_not_pass_through_the_weights() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], requires_grad=True)
    labels = torch.tensor([0, 2])
    weighted_ascent(logits, labels, 0.5)[0].backward()
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
    ascent, beyond = weighted_ascent(logits, torch.tensor([0, 0]), 0.5)
    ascent.backward()
    assert beyond == 1
    assert logits.grad is not None
    assert float(logits.grad[0].abs().max()) > 0.1
    assert logits.grad[1].tolist() == [0.0, 0.0]


def test_an_empty_batch_gives_zero() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    assert float(weighted_ascent(logits, torch.zeros(0, dtype=torch.long), 0.5)[0].detach()) == 0.0


def test_the_mask_compares_the_two_fishers() -> None:
    forget = {"a": torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0])}
    retain = {"a": torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])}
    assert forget_saliency(forget, retain, 1.0)["a"].tolist() == [True, True, False, True, False]
    assert forget_saliency(forget, retain, 2.0)["a"].tolist() == [True, False, False, False, False]
