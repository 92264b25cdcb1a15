"""Random numbers of a run belong to samples: they are drawn for positions in the data (rule R7)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forgetkit import forget
from forgetkit.draws import uniform
from forgetkit.engine.run import Run
from forgetkit.method import State
from forgetkit.methods.bad_teaching import BadTeaching
from forgetkit.testing import toy
from forgetkit.types import SampleSet

LOST = list(range(1, 240, 4))  # class 1 of the toys
KEPT = [position for position in range(240) if position % 4 != 1]


def first_drawn(purpose: str, count: int) -> list[int]:
    """Return the positions of the retained samples with the lowest draws, ascending."""
    draws = uniform(6, purpose, torch.tensor(KEPT)).tolist()
    return sorted(position for _, position in sorted(zip(draws, KEPT, strict=True))[:count])


def test_bad_teaching_takes_the_retained_samples_of_the_lowest_draws() -> None:
    taken: list[int] = []

    class Watched(BadTeaching):
        def setup(self, run: Run) -> State:
            state = super().setup(run)
            taken.extend(run.retain.positions[state["rows"]].tolist())
            return state

    request = forget(toy("cnn").model).seed(6).classes([1]).using(Watched()).on("cpu")
    request.run(toy("cnn").loader(), guard=None)
    assert taken == first_drawn("bad_teaching", 54)


def test_ntk_takes_the_retained_samples_of_the_lowest_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []

    def watched(run: Run, move: object, kept: SampleSet) -> float:
        taken.extend(kept.positions.tolist())
        return 1.0

    monkeypatch.setattr("forgetkit.methods.ntk.searched_scale", watched)
    request = forget(toy("cnn").model).seed(6).classes([1]).on("cpu")
    request = request.using("ntk", retain_samples=20, solver="cg", iterations=1)
    request.run(toy("cnn").loader(), guard=None)
    assert taken == first_drawn("ntk", 20)


@pytest.mark.parametrize(
    ("slug", "settings", "purposes"),
    [
        ("random_label", {"epochs": 1}, {"random_label": "forget"}),
        ("salun", {"epochs": 1}, {"random_label": "forget"}),
        ("bad_teaching", {}, {"bad_teaching": "retain"}),
        (
            "fisher",
            {"labels": "sampled", "retain_samples": 20},
            {"fisher: samples": "retain", "fisher: labels": "retain"},
        ),
        (
            "ntk",
            {"retain_samples": 20, "solver": "cg", "iterations": 1, "noise": 1e-6},
            {"ntk": "retain", "ntk: noise": "retain"},
        ),
        ("influence2", {"hessian_samples": 20, "iterations": 1}, {"influence2": "retain"}),
        ("unsir", {"noise_steps": 1}, {"unsir": "retain"}),
        (
            "sfron",
            {"epochs": 1, "iterations": 1},
            {"sfron forget 0": "forget", "sfron retain 0": "retain"},
        ),
    ],
)
def test_numbers_are_drawn_for_positions_in_the_data(
    slug: str, settings: dict[str, Any], purposes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[int]] = {}
    drawn = Run.uniform

    def watched(run: Run, purpose: str, positions: Tensor) -> Tensor:
        asked.setdefault(purpose, positions.tolist())
        return drawn(run, purpose, positions)

    monkeypatch.setattr(Run, "uniform", watched)
    request = forget(toy("cnn").model).classes([1]).using(slug, **settings).on("cpu")
    request.run(toy("cnn").loader(), guard=None)
    whole = {"forget": LOST, "retain": KEPT}
    assert asked == {purpose: whole[which] for purpose, which in purposes.items()}
