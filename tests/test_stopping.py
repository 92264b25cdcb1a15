"""The two stop rules with validation data, on a model of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetkit.data.sets import StoredSet
from forgetkit.stopping import (
    begin_gap,
    begin_patience,
    take_back,
    validation_gap,
    validation_patience,
)

Accuracy = Callable[[float], float]


class OneNumber:
    """Stands for a run whose accuracies are functions of its only weight."""

    def __init__(self, forget: Accuracy, kept: Accuracy) -> None:
        self.weight = 1.0
        self.epoch = 0
        self.state: dict[str, Tensor] = {}
        labels = torch.zeros(2, dtype=torch.long)
        self.validation = self.forget = StoredSet(torch.zeros(2, 1), labels)
        self._forget, self._kept = forget, kept

    def forget_accuracy(self) -> float:
        return self._forget(self.weight)

    def accuracy(self, _: object) -> float:
        return self._kept(self.weight)

    def snapshot(self) -> dict[str, Tensor]:
        return {"w": torch.tensor(self.weight, dtype=torch.float64)}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        self.weight = float(snapshot["w"])


def gap_of(
    forget: Accuracy, weights: list[float], kept: Accuracy = lambda _: 0.75
) -> tuple[list[str | None], Any]:
    """Return what the rule says after each epoch, and the run."""
    run: Any = OneNumber(forget, kept)
    run.state = begin_gap(run)
    said = []
    for epoch, weight in enumerate(weights):
        run.epoch, run.weight = epoch, weight
        said.append(validation_gap(run))
        assert run.weight == weight  # looks between the epochs leave no trace
    return said, run


@pytest.mark.parametrize("gain", [0.0, 2.0])
def test_the_place_between_two_epochs_where_the_gap_closes_is_kept(gain: float) -> None:
    """Validation accuracy that rises meanwhile is no merit of a place."""
    said, run = gap_of(lambda w: w, [0.875, 0.375], lambda w: 0.75 + gain * max(0.875 - w, 0.0))
    assert said[0] is None
    assert said[1] is not None
    assert "after 2 epochs (gap -12.50, then 37.50 points; the weights 25 %" in said[1]
    take_back(run)
    assert run.weight == 0.75


def test_lost_validation_accuracy_counts_as_gap() -> None:
    said, run = gap_of(lambda w: w, [0.875, 0.375], lambda w: 0.75 if w > 0.8 else 0.25)
    assert "12 % of the way" in str(said[1])  # 25 % closes the gap, but loses half
    take_back(run)
    assert run.weight == 0.8125


def test_either_end_may_be_the_nearest() -> None:
    said, run = gap_of(lambda w: 0.75 if w <= 0.5 else 1.0, [0.9, 0.5])
    assert "100 % of the way" in str(said[1])
    take_back(run)
    assert run.weight == 0.5
    said, run = gap_of(lambda w: 0.8 if w > 0.85 else 0.0, [0.9, 0.5])
    assert " 0 % of the way" in str(said[1])
    take_back(run)
    assert run.weight == 0.9


def test_a_gap_of_zero_is_closed() -> None:
    said, run = gap_of(lambda w: w, [0.75])
    assert "100 % of the way" in str(said[0])
    take_back(run)
    assert run.weight == 0.75
    said, _ = gap_of(lambda _: 0.75, [1.0])
    assert "nothing was done" in str(said[0])


def patience(seen: list[float], epochs: int) -> tuple[list[str | None], Any]:
    """Return what the rule says after each epoch of weights 1, 2, 3, ..., and the run."""
    run: Any = OneNumber(lambda _: 1.0, lambda w: seen[int(w) - 1])
    run.state = begin_patience(run)
    said = []
    for weight in range(1, len(seen) + 1):
        run.weight = float(weight)
        said.append(validation_patience(run, epochs))
    return said, run


def test_patience_keeps_the_best_epoch_and_not_the_first() -> None:
    said, run = patience([0.5, 0.9, 0.8, 0.8], 2)
    assert said[:3] == [None] * 3
    assert "not risen for 2 epochs; the weights with 90.00 % are kept (50.00 % before" in str(
        said[3]
    )
    assert take_back(run)
    assert run.weight == 2.0


def test_a_rule_that_chose_nothing_takes_nothing_back() -> None:
    _, run = gap_of(lambda w: w, [0.9])
    assert not take_back(run)
    assert run.weight == 0.9


def test_an_epoch_that_is_better_starts_the_waiting_anew() -> None:
    said, run = patience([0.5, 0.4, 0.6, 0.5, 0.5], 3)
    assert said == [None] * 5
    take_back(run)  # epochs that run out keep the best as well
    assert run.weight == 3.0
