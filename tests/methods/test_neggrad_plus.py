from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.method import Facts, Pair, build, find
from forgetkit.methods.neggrad import NegGrad
from forgetkit.methods.neggrad_plus import NegGradPlus
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Terms


class Linear(nn.Module):
    """Two inputs, three classes, nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs)
        return logits


def without_dropout(kind: str) -> Toy:
    some = toy(kind)
    for module in some.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return some


def facts(forgotten: int, kept: int) -> Facts:
    return Facts("classes", forgotten, kept, num_classes=4, transformer=False)


def test_is_found_by_both_names() -> None:
    assert find("neggrad+") is find("neggrad_plus") is NegGradPlus


@pytest.mark.parametrize("kind", TOYS)
def test_without_weight_on_forget_it_is_finetuning(kind: str) -> None:
    shared = {"epochs": 2, "lr": 0.02, "momentum": 0.5, "bn": "frozen", "batch_size": 16}
    tuned = build("finetune", shared)
    plus = build("neggrad+", {**shared, "retain_weight": 1.0, "max_norm": None})
    ours, theirs = without_dropout(kind), without_dropout(kind)
    forget(ours.model).classes([3]).using(plus).on("cpu").run(ours.loader(), guard=None)
    forget(theirs.model).classes([3]).using(tuned).on("cpu").run(theirs.loader(), guard=None)
    assert changed(weights(ours.model), weights(theirs.model)) == []


def test_without_weight_on_retain_it_is_ascent_on_the_same_batches() -> None:
    losses: list[tuple[float, float]] = []

    class Spy(NegGradPlus):
        def loss(self, batch: Pair, run: Run) -> Terms:
            terms = super().loss(batch, run)
            ascent = NegGrad().loss(batch, run)["forget"]
            whole = torch.stack(list(terms.values())).sum()
            losses.append((float(whole.detach()), float(ascent.detach())))
            return terms

    some = toy("cnn")
    method = Spy(retain_weight=0.0, epochs=2, batch_size=32)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert len(losses) == 12  # an epoch is one reading of D_r: 180 samples
    assert all(whole == ascent for whole, ascent in losses)


def test_step_on_two_samples_is_the_weighted_difference_of_gradients() -> None:
    model = Linear()
    start = model.fc.weight.detach().clone()
    inputs = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    errors = (inputs @ start.T).softmax(dim=1) - torch.eye(3)[[0, 1]]
    lost, kept = errors[0][:, None] * inputs[0], errors[1][:, None] * inputs[1]
    loader = DataLoader(TensorDataset(inputs, torch.tensor([0, 1])), batch_size=2)
    method = NegGradPlus(retain_weight=0.8, epochs=1, lr=0.1, max_norm=None)
    forget(model).classes([0]).using(method).on("cpu").run(loader, guard=None)
    expected = start - 0.1 * (0.8 * kept - 0.2 * lost)
    assert torch.allclose(model.fc.weight, expected, atol=1e-6)


@pytest.mark.parametrize("kind", TOYS)
def test_forget_loss_grows_and_retain_loss_holds(kind: str) -> None:
    some = toy(kind)
    images, labels = some.train.tensors
    kept = DataLoader(TensorDataset(images[labels != 3], labels[labels != 3]), batch_size=64)
    method = NegGradPlus(retain_weight=0.7, lr=0.1, epochs=6, batch_size=32)
    asked = forget(some.model).classes([3]).using(method).on("cpu").validate(kept)
    result = asked.run(some.loader(), guard=None)
    assert result.after["forget"].loss > 2 * result.before["forget"].loss
    before, after = result.before["validation_retain"], result.after["validation_retain"]
    assert after.loss < 2 * before.loss
    assert all(math.isfinite(row["loss"]) for row in result.history)


def test_a_longer_forget_set_is_read_once_an_epoch() -> None:
    seen: list[int] = []

    class Reads(NegGradPlus):
        def loss(self, batch: Pair, run: Run) -> Terms:
            assert batch.forget is not None
            seen.extend(batch.forget.index.tolist())
            return super().loss(batch, run)

    some = toy("cnn")
    method = Reads(retain_weight=0.9, epochs=1, lr=0.0, batch_size=50)
    request = forget(some.model).classes([1, 2, 3]).using(method).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert sorted(seen) == list(range(180))  # of which D_r has 60
    assert result.history[0]["steps"] == 4


@pytest.mark.parametrize(
    ("forgotten", "kept", "expected"),
    [(50, 1000, 0.95), (10, 1000, 0.99), (500, 1000, 0.95), (5, 0, 0.95)],
)
def test_weight_follows_the_ratio_of_the_sets(forgotten: int, kept: int, expected: float) -> None:
    tuned = NegGradPlus().tuned(facts(forgotten, kept))
    assert tuned.retain_weight == pytest.approx(expected)
    assert NegGradPlus(retain_weight=0.5).tuned(facts(forgotten, kept)).retain_weight == 0.5


def steep(rows: list[tuple[float, float]]) -> DataLoader[tuple[Tensor, ...]]:
    """One sample of class 0, then samples of class 1, wrong by far where the first input is big."""
    inputs = torch.tensor([(0.0, 1.0), *rows])
    labels = torch.tensor([0] + [1] * len(rows))
    return DataLoader(TensorDataset(inputs, labels), batch_size=len(labels))


def test_a_steep_step_is_scaled_down_to_a_gradient_of_norm_5() -> None:
    model = Linear()
    start = model.fc.weight.detach().clone()
    method = NegGradPlus(retain_weight=0.5, epochs=1, lr=0.1)
    request = forget(model).classes([0]).using(method).on("cpu")
    result = request.run(steep([(16.0, 0.0)]), guard=None)  # its gradient has norm 11.3
    moved = model.fc.weight.detach() - start
    assert float(moved.norm()) == pytest.approx(0.1 * 5.0, rel=1e-4)
    assert "the gradient was clipped in 1 step" in result.stopped_because


def test_the_result_counts_the_steps_that_were_clipped() -> None:
    method = NegGradPlus(retain_weight=0.5, epochs=1, lr=0.001, batch_size=1)
    request = forget(Linear()).classes([0]).using(method).on("cpu")
    rows = [(16.0, 0.0), (0.5, 0.5), (0.2, 1.0), (-0.3, 0.4), (15.0, 1.0)]
    result = request.run(steep(rows), guard=None)
    assert "(5 steps); the gradient was clipped in 2 steps" in result.stopped_because
    gentle = request.run(steep(rows[1:4]), guard=None)
    assert "clipped" not in gentle.stopped_because
