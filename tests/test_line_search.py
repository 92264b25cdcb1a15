from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from forgetkit.errors import UnlearningFailed
from forgetkit.line_search import LENGTHS, searched_scale

START = 64.0


@dataclass
class Goal:
    kind: str


@dataclass
class FakeRun:
    """Two weights that move alike; how far decides both accuracies. A third does not move."""

    forgets_at: float
    ruined_at: float
    kind: str = "classes"
    validation: str | None = None
    ruined: float = 0.1
    far: float = 0.9
    breaks_at: float = 1e9
    processes: int = 1
    notes: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.goal = Goal(self.kind)
        self.parameters = {
            "w": torch.full((1,), START),
            "v": torch.zeros(()),
            "still": torch.full((1,), 1e6),
        }

    def accuracy(self, samples: str) -> float:
        self.measured.append(samples)
        if self._at >= self.breaks_at:
            raise UnlearningFailed("expected finite logits")
        if self._at == 0.0:
            return 0.7
        return self.far if self._at < self.ruined_at else self.ruined

    def forget_accuracy(self) -> float:
        return max(0.8 * (1.0 - self._at / self.forgets_at), 0.0)

    @property
    def _at(self) -> float:
        moved = self.parameters["w"] - START, self.parameters["v"]
        return float(torch.stack([part.reshape(()) for part in moved]).norm())

    def snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.parameters.items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        for name, tensor in snapshot.items():
            self.parameters[name].copy_(tensor)

    def log(self, message: str) -> None:
        self.notes.append(message)


def found(run: FakeRun, step: float = 1.0) -> float:
    """Return the scale for a move of length ``step``, 3 parts in five along each moving weight."""
    move = {"w": torch.full((1,), 0.6 * step), "v": torch.full((), 0.8 * step)}
    scale = searched_scale(run, move, "kept")  # type: ignore[arg-type]
    assert run.parameters["w"].tolist() == [START]
    assert float(run.parameters["v"]) == 0.0
    return scale


def test_the_smallest_scale_that_forgets_is_taken() -> None:
    assert found(FakeRun(forgets_at=5.0, ruined_at=1e9)) == pytest.approx(2**2.5)
    assert found(FakeRun(forgets_at=5.0, ruined_at=1e9), step=4.0) == pytest.approx(2**0.5)
    run = FakeRun(forgets_at=5.0, ruined_at=1e9)
    found(run)
    assert any("it is 0.00 % at a loss of 0.00 points" in note for note in run.notes)


def test_retained_samples_are_worth_as_much() -> None:
    # 0.2 of the forget accuracy is left at 48 and costs nothing, the last step costs 0.05 of 0.7
    run = FakeRun(forgets_at=60.0, ruined_at=63.0, ruined=0.65)
    assert found(run) == pytest.approx(64.0)
    assert any("at a loss of 5.00 points" in note for note in run.notes)
    assert set(run.measured) == {"kept"}
    # 0.7 - 0.62 is more than what the last step forgets
    assert found(FakeRun(forgets_at=47.0, ruined_at=63.0, ruined=0.62)) < 63.0


def test_what_ruins_the_model_is_left_out_whatever_it_forgets() -> None:
    run = FakeRun(forgets_at=64.0, ruined_at=33.0, ruined=0.59)  # half, or all for 0.11
    assert found(run) == pytest.approx(32.0)
    run = FakeRun(forgets_at=64.0, ruined_at=33.0, ruined=0.61)
    assert found(run) == pytest.approx(64.0)


def test_the_smaller_of_equal_scales_is_taken() -> None:
    run = FakeRun(forgets_at=8.0, ruined_at=8.0, ruined=0.62)

    def staged() -> float:
        return 0.08 if run._at < 8.0 else 0.0

    run.forget_accuracy = staged  # type: ignore[method-assign]
    assert 0.7 - 0.62 != 0.08
    assert found(run) == 0.0


def test_a_move_that_only_ruins_is_not_made() -> None:
    run = FakeRun(forgets_at=1e9, ruined_at=START / 5000)
    assert found(run) == 0.0
    assert any("are not moved" in note for note in run.notes)


def test_weights_that_break_the_model_end_the_search() -> None:
    assert found(FakeRun(forgets_at=64.0, ruined_at=1e9, breaks_at=17.0)) == pytest.approx(16.0)
    several = FakeRun(forgets_at=64.0, ruined_at=1e9, breaks_at=17.0, processes=2)
    with pytest.raises(UnlearningFailed):
        found(several)


def test_single_samples_are_held_against_unseen_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetkit.line_search.unseen_accuracy", lambda run: 0.4)
    run = FakeRun(forgets_at=8.0, ruined_at=1e9, kind="instances", validation="held out")
    assert found(run) == pytest.approx(4.0)
    assert set(run.measured) == {"held out"}
    assert not any(".validate" in note for note in run.notes)


def test_classes_go_whatever_unseen_samples_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetkit.line_search.unseen_accuracy", lambda run: 0.4)
    run = FakeRun(forgets_at=8.0, ruined_at=1e9, validation="held out")
    assert found(run) == pytest.approx(8.0)
    assert set(run.measured) == {"held out"}


def test_single_samples_go_as_far_as_it_costs_nothing_where_nothing_tells_how_far() -> None:
    run = FakeRun(forgets_at=64.0, ruined_at=16.5, kind="instances")
    assert found(run) == pytest.approx(16.0)
    assert set(run.measured) == {"kept"}
    assert any("pass .validate(loader)" in note for note in run.notes)


def test_no_move_is_no_move() -> None:
    run = FakeRun(forgets_at=8.0, ruined_at=1e9)
    assert found(run, step=0.0) == 0.0
    assert any("are not moved" in note for note in run.notes)


def test_moves_reach_from_a_four_thousandth_of_the_weights_to_all_of_them() -> None:
    assert LENGTHS[0] == 2.0**-12
    assert LENGTHS[-1] == 1.0
    run = FakeRun(forgets_at=0.99 * START / 4096, ruined_at=1e9)
    assert found(run) == pytest.approx(START / 4096)


def test_samples_that_are_answered_as_unseen_ones_already_stay_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.8 before: the model as it is counts by its own distance to what is wanted."""
    monkeypatch.setattr("forgetkit.line_search.unseen_accuracy", lambda run: 0.9)
    run = FakeRun(forgets_at=8.0, ruined_at=1e9, kind="instances", validation="held out")
    assert found(run) == 0.0
    assert any("not moved" in note for note in run.notes)
