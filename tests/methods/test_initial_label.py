from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.fresh import reset_weights
from forgetkit.losses import blocked_classes
from forgetkit.method import State
from forgetkit.methods.initial_label import InitialLabel, initial_labels
from forgetkit.result import Result
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights


class Recording(InitialLabel):
    """Keeps what setup computed, and what the weights were right after it."""

    seen: ClassVar[list[tuple[Tensor, dict[str, Tensor]]]] = []

    def setup(self, run: Run) -> State:
        state = super().setup(run)
        self.seen.append((state["labels"], weights(run.model)))
        return state


def run(some: Toy, seed: int = 0, goal: str = "classes") -> tuple[Tensor, Result]:
    method = Recording(epochs=1, lr=0.01)
    before = weights(some.model)
    request = forget(some.model).seed(seed).on("cpu")
    asked = request.classes([3]) if goal == "classes" else request.instances(range(40, 80))
    result = asked.using(method).run(some.loader(), guard=None)
    labels, just_after = Recording.seen.pop()
    assert changed(before, just_after) == []  # building the twin leaves the model alone
    return labels, result


def test_labels_are_the_best_allowed_ones() -> None:
    untrained = torch.randn(50, 6)
    labels = torch.randint(0, 6, (50,))
    found, gave_way = initial_labels(untrained, blocked_classes(labels, (2, 4), 6))
    for scores, own, wanted, way in zip(untrained, labels, found, gave_way, strict=True):
        ranked = sorted(range(6), key=lambda k: -float(scores[k]))
        allowed = [k for k in ranked if k not in (2, 4, int(own))]
        assert int(wanted) == allowed[0]
        assert bool(way) == (ranked[0] != allowed[0])


@pytest.mark.parametrize("kind", TOYS)
def test_labels_are_those_of_an_untrained_twin(kind: str) -> None:
    some = toy(kind)
    twin = copy.deepcopy(some.model)
    torch.manual_seed(7)
    reset_weights(twin)
    images, labels = some.train.tensors
    with torch.no_grad():
        scores = twin.eval()(images[labels == 3])
    wanted = scores[:, :3].argmax(dim=1)
    found, result = run(toy(kind), seed=7)
    assert torch.equal(found, wanted)
    row = result.history[0]
    assert row["distinct_labels"] == len(wanted.unique())
    assert row["blocked_labels"] == int((scores.argmax(dim=1) == 3).sum())


def test_labels_follow_the_seed() -> None:
    first, _ = run(toy("vit"), seed=1)
    again, _ = run(toy("vit"), seed=1)
    other, _ = run(toy("vit"), seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_instance_goal_bars_the_own_class_only() -> None:
    some = toy("vit")
    own = some.train.tensors[1][40:80]
    found, _ = run(some, goal="instances")
    assert not bool((found == own).any())


@pytest.mark.parametrize("kind", TOYS)
def test_the_model_learns_these_labels(kind: str) -> None:
    some = toy(kind)
    method = InitialLabel(lr=0.02, epochs=20, batch_size=16)
    result = forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0
