"""l1-sparse: the schedule of the penalty, its value, and what it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.methods.l1_sparse import l1_norm, penalty_weight
from forgetkit.result import Result
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, weights


def run(some: Toy, slug: str = "l1_sparse", **settings: object) -> Result:
    chosen = {"epochs": 2, "lr": 0.05, **settings}
    request = forget(some.model).classes([3]).using(slug, **chosen).on("cpu").seed(0)
    return request.run(some.loader(), guard=None)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 5e-4), (4, 2.5e-4), (7, 6.25e-5), (8, 0.0)])
def test_the_penalty_decays_to_nothing(epoch: int, expected: float) -> None:
    assert penalty_weight(5e-4, epoch, 10, 2) == pytest.approx(expected)
    assert penalty_weight(5e-4, epoch, 2, 5) == 0.0


def test_the_norm_is_the_sum_of_absolute_values() -> None:
    tensors = [torch.tensor([[1.5, -2.0], [0.0, 0.25]]), torch.tensor([-1.0])]
    assert float(l1_norm(tensors)) == 4.75


def test_the_subgradient_at_zero_is_zero() -> None:
    tensor = torch.tensor([0.0, 2.0, -3.0], requires_grad=True)
    l1_norm([tensor]).backward()
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [0.0, 1.0, -1.0]


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_without_a_penalty_it_is_finetune_bit_for_bit(kind: str) -> None:
    one, other = toy(kind), toy(kind)
    run(one, penalty=0.0)
    run(other, "finetune")
    assert changed(weights(one.model), weights(other.model)) == []


@pytest.mark.parametrize("counts_all", [True, False])
def test_a_step_is_that_of_a_plain_loop(counts_all: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    start = [p.detach().clone().requires_grad_() for p in (model.weight, model.bias)]
    inputs, labels = torch.randn(6, 2), torch.tensor([0, 1, 2, 1, 0, 2])
    kept = labels != 2
    logits = inputs[kept] @ start[0].T + start[1]
    total = start[0].abs().sum() + (start[1].abs().sum() if counts_all else 0.0)
    loss = nn.functional.cross_entropy(logits, labels[kept]) + 0.3 * total
    expected = [p - 0.1 * g for p, g in zip(start, torch.autograd.grad(loss, start), strict=True)]
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=6)
    result = (
        forget(model)
        .classes([2])
        .using(
            "l1_sparse", penalty=0.3, free_epochs=0, epochs=1, lr=0.1, momentum=0.0,
            one_dimensional=counts_all,
        )
        .on("cpu")
        .run(loader, guard=None)
    )  # fmt: skip
    assert torch.allclose(model.weight, expected[0], atol=1e-6)
    assert torch.allclose(model.bias, expected[1], atol=1e-6)
    assert result.history[0]["loss_retain_penalty"] == pytest.approx(
        0.3 * float(total.detach()), rel=1e-5
    )


def test_more_weights_are_next_to_zero() -> None:
    def share(some: Toy) -> float:
        values = torch.cat([p.detach().reshape(-1) for p in some.model.parameters()])
        return float((values.abs() < 1e-3).float().mean())

    one, other = toy("cnn"), toy("cnn")
    run(one, penalty=0.0, epochs=8)
    run(other, penalty=1e-2, epochs=8)
    assert share(other) > 3 * share(one)
    assert share(other) > 0.02


def test_the_penalty_of_a_run_decays_and_ends() -> None:
    some = toy("cnn")
    counted = [p.detach() for p in some.model.parameters() if p.ndim > 1]
    size = float(l1_norm(counted))
    result = run(some, lr=0.0, penalty=0.1, epochs=4, free_epochs=2, one_dimensional=False)
    found = [row.get("loss_retain_penalty") for row in result.history]
    assert found[:2] == [pytest.approx(0.1 * size, rel=1e-5), pytest.approx(0.05 * size, rel=1e-5)]
    assert found[2:] == [None, None]
