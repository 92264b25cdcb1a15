from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import Guard, forget
from forgetkit.data.sets import StoredSet
from forgetkit.engine import execution, remarks
from forgetkit.engine.guard import UNWATCHED, BestState, Reading, hold_out, verdict
from forgetkit.goal import Classes, Goal, Instances, Relabel
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Sets


def reading(forget_accuracy: float, retain: float | None, loss: float = 1.0) -> Reading:
    return Reading(forget_accuracy, loss, retain)


def test_a_run_that_costs_too_much_is_undone() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("neggrad", lr=1.0, max_norm=None, epochs=3)
    result = request.on("cpu").run(some.loader(), guard=Guard(budget=0.02))
    assert result.rolled_back
    assert "budget" in result.stopped_because
    assert changed(before, weights(some.model)) == []
    assert result.after == result.before


def test_retained_samples_of_a_stream_are_watched() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("neggrad", lr=1.0, max_norm=None, epochs=3)
    result = request.on("cpu").run(iter(some.loader()), guard=Guard(budget=0.02, most=50))
    assert result.rolled_back
    assert "budget" in result.stopped_because
    assert changed(before, weights(some.model)) == []
    assert result.before["retain"].samples == 50
    assert UNWATCHED not in result.notes
    alone = request.on("cpu").run(iter(some.forget_loader()))
    assert UNWATCHED in alone.notes


def test_the_same_run_stands_without_a_guard() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("neggrad", lr=1.0, max_norm=None, epochs=3)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert not result.rolled_back
    assert changed(before, weights(some.model)) != []


def test_a_run_that_forgot_nothing_is_undone() -> None:
    some = toy("cnn")
    before = weights(some.model)
    result = (
        forget(some.model)
        .classes([3])
        .using("finetune", lr=1e-6, epochs=1, bn="frozen")
        .on("cpu")
        .run(some.loader())
    )
    assert result.rolled_back
    assert "nothing was forgotten" in result.stopped_because
    assert changed(before, weights(some.model)) == []


def test_a_better_epoch_is_kept_of_a_method_whose_finish_left_the_weights_alone() -> None:
    """PGU takes weights back at its end where a stop rule chose some, and here there is none."""
    some = toy("cnn")
    settings = {"epochs": 6, "lr": 0.005, "last_lr": 0.3, "gamma": 0.3, "batch_size": 16}
    request = forget(some.model).instances(range(0, 40, 4)).using("pgu", **settings)
    result = request.on("cpu").run(some.loader())
    assert result.history[-1]["retain_accuracy"] < 0.85
    assert not result.rolled_back
    assert "the guard keeps the better weights after epoch" in result.stopped_because
    assert result.after["retain"].accuracy > 0.95


def test_a_request_that_is_not_fulfilled_is_noted_where_the_run_stands() -> None:
    def noted(goal: Goal, method: str, **settings: object) -> str:
        some = toy("cnn")
        request = replace(forget(some.model), goal=goal).using(method, **settings).on("cpu")
        result = request.run(some.loader(), guard=None)
        assert not result.rolled_back
        return " ".join(result.notes)

    said = noted(Classes([3]), "finetune", lr=1e-6, epochs=1, bn="frozen")
    assert "did not fall (100.0 % to 100.0 %), so the request is not fulfilled" in said
    assert "not fulfilled" not in noted(Classes([3]), "lau")
    # what a model knows of single samples it may know without them
    assert "not fulfilled" not in noted(Instances([0, 1]), "finetune", lr=1e-6, epochs=1)
    said = noted(Relabel({0: 1, 1: 2, 5: 3}), "correct", lr=1e-6, epochs=1)
    assert "3 of 3 samples are not read as their new label, so the request is not fulfilled" in said
    assert "not fulfilled" not in noted(Relabel({0: 1, 1: 2, 5: 3}), "correct", lr=0.05)


def test_validation_data_are_watched_instead_of_a_slice() -> None:
    some = toy("cnn")
    test = DataLoader(some.test, batch_size=64)
    request = forget(some.model).classes([3]).using("lau").validate(test).on("cpu")
    result = request.run(some.forget_loader())
    assert set(result.after) == {"forget", "validation_retain", "validation_forget"}
    assert result.after["validation_forget"].accuracy <= 0.05
    assert result.us is not None
    assert result.us > 0.9


def test_validation_data_of_the_forgotten_class_alone_leave_a_slice_to_watch() -> None:
    some = toy("cnn")
    lost = TensorDataset(*(t[some.test.tensors[1] == 3] for t in some.test.tensors))
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("neggrad", lr=1.0, max_norm=None, epochs=3)
    result = request.validate(DataLoader(lost, batch_size=64)).on("cpu").run(some.loader())
    assert set(result.before) == {"forget", "retain", "validation_forget"}
    assert result.rolled_back
    assert changed(before, weights(some.model)) == []


def test_verdicts() -> None:
    guard = Guard(budget=0.1)
    assert verdict(guard, reading(1.0, 0.9), reading(0.0, 0.85)) is None
    assert "fell by 11.0" in str(verdict(guard, reading(1.0, 0.9), reading(0.0, 0.79)))
    assert "nothing" in str(verdict(guard, reading(1.0, 0.9), reading(1.0, 0.9)))
    assert verdict(guard, reading(1.0, 0.9), reading(1.0, 0.9, loss=1.5)) is None
    assert "nothing" in str(verdict(guard, reading(1.0, None), reading(1.0, None)))
    assert verdict(guard, reading(1.0, None), reading(0.0, None)) is None
    assert verdict(guard, reading(0.0, None), reading(0.0, None)) is None  # nothing to forget


def test_the_watched_slice_is_not_trained_on() -> None:
    labels = torch.arange(400) % 4
    samples = StoredSet(torch.zeros(400, 1), labels)
    sets, watched = hold_out(Sets(samples, samples), Guard(), torch.Generator().manual_seed(0))
    assert watched is not None
    assert sets.retain is not None
    held, rest = set(watched.positions.tolist()), set(sets.retain.positions.tolist())
    assert len(held) == 40
    assert held | rest == set(range(400))
    assert not held & rest


@pytest.mark.parametrize(
    ("count", "most", "watched_size", "trained_on"),
    [(400, 10, 10, False), (400, 1, 1, False), (150, 1024, 150, True), (150, 10, 10, True)],
)
def test_few_samples_are_held_out_where_the_guard_asks_for_few(
    count: int, most: int, watched_size: int, trained_on: bool
) -> None:
    samples = StoredSet(torch.zeros(count, 1), torch.arange(count) % 4)
    generator = torch.Generator().manual_seed(0)
    sets, watched = hold_out(Sets(samples, samples), Guard(most=most), generator)
    assert watched is not None
    assert sets.retain is not None
    assert len(watched) == watched_size
    shared = set(watched.positions.tolist()) & set(sets.retain.positions.tolist())
    assert len(shared) == (watched_size if trained_on else 0)


def test_of_states_that_score_the_same_the_last_one_is_kept() -> None:
    weight = torch.zeros(1)
    best = BestState({"weight": weight}, reading(1.0, 0.9), target=0.0, budget=0.1)
    for value, kept_accuracy in ((1.0, 0.9), (2.0, 0.9), (3.0, 0.8)):
        weight.fill_(value)
        best.offer(reading(0.0, kept_accuracy))
    assert "after epoch 2 of 3" in str(best.restore())
    assert weight.item() == 2.0
    kept = BestState({"weight": weight}, reading(0.0, 0.9), target=0.0, budget=0.1)
    weight.fill_(4.0)
    kept.offer(reading(0.0, 0.9))  # as good as the start
    weight.fill_(5.0)
    assert kept.restore() is None  # it is the last one offered
    assert weight.item() == 4.0


def test_the_best_state_is_kept() -> None:
    """A run that ruins itself after a good epoch ends with that epoch's weights, and says so."""
    some = toy("vit")
    request = forget(some.model).classes([3]).using("salun", lr=0.1, epochs=6)
    result = request.on("cpu").run(some.loader(), guard=Guard(budget=1.0))
    seen = [(row["retain_accuracy"], row["forget_accuracy"]) for row in result.history]
    final = (result.after["retain"].accuracy, result.after["forget"].accuracy)
    said = re.search(r"keeps the better weights after epoch (\d+) of 6", result.stopped_because)
    assert said is not None
    assert final == pytest.approx(seen[int(said[1]) - 1], abs=1e-6)
    assert final[0] > seen[-1][0] + 0.1


def test_samples_for_the_guard_come_from_the_loader() -> None:
    images = torch.randn(64, 1, 8, 8)
    data = TensorDataset(images, torch.arange(64) % 4)
    some = toy("cnn")
    result = (
        forget(some.model).classes([3]).using("lau").on("cpu").run(DataLoader(data, batch_size=16))
    )
    assert "retain" in result.before


@pytest.mark.parametrize("slug", ["random_label", "initial_label"])
@pytest.mark.parametrize("validated", [True, False])
def test_a_method_that_does_not_stop_for_single_samples_has_no_target_of_zero(
    slug: str, validated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    aims: list[float] = []

    class Spied(BestState):
        def __init__(self, edited: object, start: Reading, target: float, budget: float) -> None:
            aims.append(target)
            super().__init__(edited, start, target, budget)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "BestState", Spied)
    some = toy("cnn")
    request = forget(some.model).instances(range(30)).using(slug, epochs=3, lr=0.05).on("cpu")
    if validated:
        request = request.validate(DataLoader(some.test, batch_size=32))
    result = request.run(some.loader())
    assert len(result.history) == 3
    assert not any("trains until" in note for note in result.notes)
    assert len(aims) == 1
    assert aims[0] > 0.5


@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_a_run_that_forgot_nothing_is_undone_without_retained_samples_too(lr: float) -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("neggrad", lr=lr, epochs=3).on("cpu")
    result = request.run(some.forget_loader())
    assert result.rolled_back == (lr == 0.0)
    assert ("nothing was forgotten" in result.stopped_because) == (lr == 0.0)
    assert any("no retained sample is at hand" in note for note in result.notes)


@pytest.mark.parametrize("guard", [None, Guard()])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_forget_set_that_the_model_never_knew_is_mentioned(
    guard: Guard | None, shift: int
) -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    shifted = TensorDataset(images, (labels + shift) % 4)  # as when labels count from 1
    request = forget(some.model).classes([3]).using("neggrad", epochs=1).on("cpu")
    result = request.run(DataLoader(shifted, batch_size=64), guard=guard)
    assert (remarks.NOTHING_KNOWN in result.notes) == (shift == 1)


def test_wrong_labels_that_the_model_never_learnt_are_no_reason_to_look_at_the_labels() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    wrong = DataLoader(TensorDataset(images[:8], (labels[:8] + 1) % 4), batch_size=8)
    request = forget(some.model).using("correct", epochs=1).on("cpu")
    result = request.relabel(labels[:8].tolist()).run(wrong, guard=None)
    assert result.before["forget"].accuracy == 0.0
    assert remarks.NOTHING_KNOWN not in result.notes
