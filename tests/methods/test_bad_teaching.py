from __future__ import annotations

import copy
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from forgetkit import forget
from forgetkit.distillation import divergences
from forgetkit.engine.run import Run
from forgetkit.fresh import reset_weights
from forgetkit.method import Pair, State
from forgetkit.methods.bad_teaching import BadTeaching
from forgetkit.result import Result
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Terms


class Spy(BadTeaching):
    """Keeps what the teachers said, and for each step what was read and the loss."""

    said: ClassVar[list[Tensor]] = []
    ended: ClassVar[list[Tensor]] = []
    steps_seen: ClassVar[list[tuple[Tensor, Tensor, float]]] = []

    def setup(self, run: Run) -> State:
        state = super().setup(run)
        self.said[:] = [state["teachers"].clone(), state["rows"].clone()]
        self.steps_seen.clear()
        return state

    def loss(self, batch: Pair, run: Run) -> Terms:
        terms = super().loss(batch, run)
        assert batch.forget is not None
        assert isinstance(batch.forget.inputs, Tensor)
        value = float(terms["forget"].detach())
        self.steps_seen.append((batch.forget.index, batch.forget.inputs, value))
        return terms

    def finish(self, run: Run) -> None:
        self.ended[:] = [run.state["teachers"].clone(), run.state["rows"].clone()]


def spied(some: Toy, seed: int = 0, **settings: float) -> Result:
    method = Spy(**{"lr": 0.002, "batch_size": 16, **settings})  # type: ignore[arg-type]  # by name
    asked = forget(some.model).seed(seed).classes([3]).using(method).on("cpu")
    return asked.run(some.loader(), guard=None)


def literal(teacher: Tensor, student: Tensor, temperature: float) -> list[float]:
    """Return sum_k t_k log(t_k / s_k) of each sample, term by term."""
    found = []
    for t_row, s_row in zip(teacher.tolist(), student.tolist(), strict=True):
        t = [math.exp(z / temperature) for z in t_row]
        s = [math.exp(z / temperature) for z in s_row]
        t, s = [a / sum(t) for a in t], [a / sum(s) for a in s]
        found.append(sum(a * math.log(a / b) for a, b in zip(t, s, strict=True)))
    return found


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_first_loss_is_the_mean_over_both_parts_by_hand(kind: str, temperature: float) -> None:
    some, original = toy(kind), toy(kind)
    spied(some, seed=5, temperature=temperature)
    twin = copy.deepcopy(original.model)
    torch.manual_seed(5)
    reset_weights(twin)
    images, labels = original.train.tensors
    index, inputs, value = Spy.steps_seen[0]
    lost = index < 60  # the forget set comes first
    kept = images[labels != 3]
    sources = torch.cat([images[labels == 3], kept[Spy.said[1]]])
    assert torch.equal(inputs, sources[index])
    assert 0 < int(lost.sum()) < len(index)  # shuffled together
    with torch.no_grad():
        student = original.model.eval()(inputs)
        bad = twin.eval()(inputs)
    parts = literal(torch.where(lost[:, None], bad, student), student, temperature)
    assert value == pytest.approx(sum(parts) / 16, rel=1e-3)
    assert all(part < 1e-6 for part, own in zip(parts, lost.tolist(), strict=True) if not own)


def test_a_share_of_the_retain_set_is_drawn() -> None:
    spied(toy("cnn"), retain_share=0.3)
    first, rows = Spy.said
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 54  # 30 % of 180
    assert first.shape == (60 + 54, 4)
    read = torch.cat([index for index, _, _ in Spy.steps_seen])
    assert sorted(read.tolist()) == list(range(114))
    spied(toy("cnn"), seed=1, retain_share=0.3)
    assert not torch.equal(rows, Spy.said[1])
    spied(toy("cnn"), retain_share=0.0)
    assert Spy.said[0].shape == (60, 4)


def test_the_original_is_its_own_teacher_at_the_start() -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    loss = divergences(logits.detach(), logits, 1.0).mean()
    loss.backward()
    assert abs(float(loss.detach())) < 1e-7
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7


def test_a_teacher_with_a_zero_head_asks_for_equal_probabilities() -> None:
    some = toy("cnn")

    def blank() -> nn.Module:
        made = toy("cnn").model
        head = made.get_submodule("fc")
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return made

    method = Spy(lr=0.0, retain_share=0.0, batch_size=60)
    request = forget(some.model).classes([3]).fresh(blank).using(method).on("cpu")
    request.run(some.loader(), guard=None)
    images, labels = some.train.tensors
    with torch.no_grad():
        log_p = some.model.eval()(images[labels == 3]).log_softmax(dim=1)
    # KL(uniform || p) = -log K - mean_k log p_k
    expected = -math.log(4) - log_p.mean(dim=1)
    assert Spy.steps_seen[0][2] == pytest.approx(float(expected.mean()), rel=1e-4)


@pytest.mark.parametrize("kind", TOYS)
def test_neither_teacher_changes(kind: str) -> None:
    some = toy(kind)
    spied(some, epochs=2, lr=0.01)
    for before, after in zip(Spy.said, Spy.ended, strict=True):
        assert torch.equal(before, after)
    assert changed(weights(toy(kind).model), weights(some.model)) != []


@pytest.mark.parametrize("kind", TOYS)
def test_the_forget_set_comes_nearer_to_the_untrained_teacher(kind: str) -> None:
    some = toy(kind)
    result = spied(some, epochs=6)
    images, labels = some.train.tensors
    with torch.no_grad():
        after = some.model.eval()(images[labels == 3])
        before = toy(kind).model.eval()(images[labels == 3])
    bad = Spy.said[0][:60]
    assert sum(literal(bad, after, 1.0)) < 0.2 * sum(literal(bad, before, 1.0))
    assert result.after["forget"].accuracy < 0.5
    assert some.accuracy(some.test, [0, 1, 2]) > 0.9
