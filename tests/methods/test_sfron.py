"""SFRon: which steps ascend, what an ascent may move, and the descent alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import draws, forget
from forgetkit.draws import uniform
from forgetkit.methods.sfron import SFRon
from forgetkit.result import Result
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, weights

entropy = nn.functional.cross_entropy


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs)
        return logits


def run(some: Toy, **settings: object) -> Result:
    chosen = {"epochs": 2, "iterations": 10, "batch_size": 32, **settings}
    request = forget(some.model).classes([3]).using("sfron", **chosen).on("cpu").seed(0)
    return request.run(some.loader(), guard=None)


@pytest.mark.parametrize(
    ("iterations", "every", "epochs", "ascents"),
    [(15, 5, 2, 6), (3, 5, 3, 2), (6, 1, 1, 6), (2, 9, 2, 1)],
)
def test_every_fifth_iteration_ascends(
    iterations: int, every: int, epochs: int, ascents: int
) -> None:
    result = run(toy("vit"), iterations=iterations, every=every, epochs=epochs)
    assert result.history[-1]["steps"] == epochs * iterations + ascents


def test_by_default_300_of_1500_iterations_ascend() -> None:
    method = SFRon()
    total = method.epochs * method.iterations
    assert total == 1500
    assert sum(i % method.every == 0 for i in range(total)) == 300


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(20, 2, generator=generator), torch.arange(20) % 4


def order_of(name: str, cycle: int, positions: Tensor) -> Tensor:
    return positions[uniform(0, f"sfron {name} {cycle}", positions).argsort()]


@pytest.mark.parametrize("ascent", [0.0, 2.0])
def test_equals_a_plain_loop(ascent: float) -> None:
    """Without ascent this is fine-tuning on the same batches."""
    torch.manual_seed(0)
    model = Head()
    inputs, labels = data()
    values = [p.detach().clone() for p in (model.fc.weight, model.fc.bias)]
    own, kept = (labels == 3).nonzero()[:, 0], (labels != 3).nonzero()[:, 0]

    def gradients(rows: Tensor, power: float | None = None) -> list[Tensor]:
        leaves = [v.clone().requires_grad_() for v in values]
        each = entropy(inputs[rows] @ leaves[0].T + leaves[1], labels[rows], reduction="none")
        shares = torch.ones(len(rows))
        if power is not None:
            shares = each.detach() ** -power
            shares = shares / shares.mean()
        return list(torch.autograd.grad((shares * each).mean(), leaves))

    def fisher(rows: Tensor) -> list[Tensor]:
        squares = [[g.square() for g in gradients(part)] for part in rows.split(4)]
        return [torch.stack(found).mean(dim=0) for found in zip(*squares, strict=True)]

    masks = [f >= r for f, r in zip(fisher(own), fisher(kept), strict=True)]
    momenta = [torch.zeros(4, 2), torch.zeros(4)]

    def step(found: list[Tensor]) -> None:
        for i, gradient in enumerate(found):
            momenta[i] = 0.9 * momenta[i] + gradient + 5e-4 * values[i]
            values[i] = values[i] - 0.05 * momenta[i]

    for iteration in range(8):  # batches of 4: one a cycle of the 5 forgotten, 3 of the 15 kept
        if iteration % 3 == 0 and ascent > 0:
            rows = order_of("forget", iteration // 3, own)[:4]
            decay = (1 + math.cos(math.pi * iteration / 8)) / 2
            found = [
                -ascent * decay * g * m for g, m in zip(gradients(rows, 0.5), masks, strict=True)
            ]
            norm = float(torch.cat([g.reshape(-1) for g in found]).norm())
            step([g * min(1.0, 0.5 / (norm + 1e-6)) for g in found])
        rows = order_of("retain", iteration // 3, kept)[iteration % 3 * 4 : iteration % 3 * 4 + 4]
        step(gradients(rows))
    settings = {
        "iterations": 4, "every": 3, "epochs": 2, "batch_size": 4, "ascent": ascent, "lr": 0.05,
        "schedule": "constant", "ascent_norm": 0.5,
    }  # fmt: skip
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    request = forget(model).classes([3]).using("sfron", **settings).on("cpu").seed(0)
    request.run(loader, guard=None)
    assert torch.allclose(model.fc.weight, values[0], atol=1e-5)
    assert torch.allclose(model.fc.bias, values[1], atol=1e-5)


def test_an_ascent_leaves_masked_entries_alone() -> None:
    """With the mask shut and no momentum or decay, ascents change nothing."""
    shared: dict[str, object] = {
        "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "lr": 0.01,
    }  # fmt: skip
    shut, none = toy("cnn"), toy("cnn")
    run(shut, ratio=1e6, **shared)
    run(none, ascent=0.0, **shared)
    assert changed(weights(shut.model), weights(none.model)) == []
    opened = toy("cnn")
    run(opened, ratio=0.0, **shared)
    assert changed(weights(opened.model), weights(none.model)) != []


def test_every_sample_is_read_once_before_one_comes_again() -> None:
    positions = torch.arange(12)
    orders = [order_of("retain", cycle, positions) for cycle in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(12)) for order in orders)
    assert orders[0].tolist() != orders[1].tolist()


def test_an_order_is_drawn_once_an_epoch_and_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[str] = Counter()

    def counted(seed: int, purpose: str, positions: Tensor) -> Tensor:
        drawn[purpose] += 1
        return uniform(seed, purpose, positions)

    monkeypatch.setattr(draws, "uniform", counted)
    run(toy("vit"), epochs=1, iterations=30)  # 180 retained samples: 5 whole batches a cycle
    orders = {purpose: count for purpose, count in drawn.items() if purpose.startswith("sfron")}
    assert orders == {f"sfron forget {c}": 1 for c in range(6)} | {
        f"sfron retain {c}": 1 for c in range(6)
    }


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    some = toy("cnn")
    result = run(some, batch_size=1000, iterations=6, every=2, epochs=1)
    assert result.history[-1]["steps"] == 9


def test_the_history_counts_capped_samples_and_scaled_ascents() -> None:
    some = toy("cnn")
    quiet = run(some, ascent=1e-3, epochs=1, lr=0.0).history[-1]
    assert quiet["clipped_ascents"] == quiet["capped"] == 0.0
    with torch.no_grad():
        some.model.get_parameter("fc.bias")[3] -= 100.0  # far beyond the cap
    row = run(some, ascent=1e-3, epochs=1, lr=0.0).history[-1]
    assert row["capped"] == 2 * 32
    loud = run(toy("cnn"), ascent=500.0, epochs=1, lr=0.0).history[-1]
    assert loud["clipped_ascents"] == 2.0
