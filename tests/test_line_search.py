from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from forgetkit.line_search import LENGTHS, searched_scale

START = 64.0


@dataclass
class Goal:
    kind: str


@dataclass
class FakeRun:
    """One weight, whose value decides both accuracies."""

    forgets_at: float
    ruined_at: float
    kind: str = "classes"
    validation: str | None = None
    notes: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.goal = Goal(self.kind)
        self.parameters = {"w": torch.full((1,), START)}

    def accuracy(self, samples: str) -> float:
        self.measured.append(samples)
        return 0.9 if self._at < self.ruined_at else 0.1

    def forget_accuracy(self) -> float:
        return max(0.8 * (1.0 - self._at / self.forgets_at), 0.0)

    @property
    def _at(self) -> float:
        return float(self.parameters["w"]) - START

    def snapshot(self) -> dict[str, Tensor]:
        return {"w": self.parameters["w"].clone()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        self.parameters["w"].copy_(snapshot["w"])

    def log(self, message: str) -> None:
        self.notes.append(message)


def found(run: FakeRun, step: float = 1.0) -> float:
    scale = searched_scale(run, {"w": torch.full((1,), step)}, "kept")  # type: ignore[arg-type]
    assert float(run.parameters["w"]) == START
    return scale


def test_the_smallest_scale_that_forgets_is_taken() -> None:
    assert found(FakeRun(forgets_at=5.0, ruined_at=1e9)) == pytest.approx(2**2.5)
    assert found(FakeRun(forgets_at=5.0, ruined_at=1e9), step=4.0) == pytest.approx(2**0.5)
    run = FakeRun(forgets_at=5.0, ruined_at=1e9)
    found(run)
    assert any("0.00 points" in note for note in run.notes)


def test_retained_samples_are_worth_as_much() -> None:
    run = FakeRun(forgets_at=64.0, ruined_at=33.0)  # half forgotten for nothing, or all for 0.8
    assert found(run) == pytest.approx(32.0)
    assert set(run.measured) == {"kept"}


def test_a_move_that_only_ruins_is_not_made() -> None:
    run = FakeRun(forgets_at=1e9, ruined_at=START / 5000)
    assert found(run) == 0.0
    assert any("nothing was changed" in note for note in run.notes)


def test_single_samples_are_held_against_unseen_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetkit.line_search.unseen_accuracy", lambda run: 0.4)
    run = FakeRun(forgets_at=8.0, ruined_at=1e9, kind="instances", validation="held out")
    assert found(run) == pytest.approx(4.0)
    assert set(run.measured) == {"held out"}


def test_single_samples_go_as_far_as_it_costs_nothing_where_nothing_tells_how_far() -> None:
    run = FakeRun(forgets_at=64.0, ruined_at=16.5, kind="instances")
    assert found(run) == pytest.approx(16.0)
    assert set(run.measured) == {"kept"}


def test_no_move_is_no_move() -> None:
    assert found(FakeRun(forgets_at=8.0, ruined_at=1e9), step=0.0) == 0.0


def test_moves_reach_from_a_four_thousandth_of_the_weights_to_all_of_them() -> None:
    assert LENGTHS[0] == 2.0**-12
    assert LENGTHS[-1] == 1.0
    assert found(FakeRun(forgets_at=START / 4096, ruined_at=1e9)) == START / 4096
