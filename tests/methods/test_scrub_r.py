from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run, Snapshot
from forgetkit.errors import DataError
from forgetkit.method import State, find
from forgetkit.methods.scrub import Scrub, ScrubRewind
from forgetkit.rewinding import nearest_state
from forgetkit.testing import Toy, toy
from forgetkit.testing.trace import changed, weights


def unseen(some: Toy, classes: list[int]) -> DataLoader[tuple[torch.Tensor, ...]]:
    images, labels = some.test.tensors
    own = torch.isin(labels, torch.tensor(classes))
    return DataLoader(TensorDataset(images[own], labels[own]), batch_size=64)


def test_is_found_by_both_names() -> None:
    assert find("scrub+r") is find("scrub_r") is ScrubRewind


@pytest.mark.parametrize(
    ("errors", "reference", "expected"),
    [
        ([0.0, 0.1, 0.4, 0.9], 0.35, 2),
        ([0.0, 0.1, 0.4, 0.9], 0.0, 0),
        ([0.0, 0.1, 0.4, 0.9], 1.0, 3),
        ([0.5, 0.2, 0.2, 0.5], 0.25, 2),
        ([0.1, 0.3, 0.9], 0.2, 1),
        ([0.3, 0.1, 0.9], 0.2, 1),
    ],
)
def test_nearest_state_wins_and_the_later_of_equals(
    errors: list[float], reference: float, expected: int
) -> None:
    assert nearest_state(errors, reference) == expected


CLASS_0 = range(0, 160, 4)


class Rewinding(ScrubRewind):
    """Writes down the state and the error after each epoch, epoch 0 being the start."""

    states: ClassVar[list[tuple[Snapshot, float]]] = []
    reference: ClassVar[list[float]] = []

    def start_epoch(self, run: Run) -> State:
        self._note(run)
        return super().start_epoch(run)

    def finish(self, run: Run) -> bool:
        self._note(run)
        samples = run.validation
        assert samples is not None
        own = torch.isin(samples.labels, run.forget.labels)
        self.reference.append(1 - run.accuracy(samples.take(own.nonzero().flatten())))
        return super().finish(run)

    def _note(self, run: Run) -> None:
        self.states.append((run.snapshot(), 1 - run.accuracy(run.forget)))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("cnn", {"lr": 0.02, "epochs": 4, "max_epochs": 2}),
        (
            "vit",
            {
                "lr": 0.2, "epochs": 3, "max_epochs": 3, "label_weight": 0.3,
                "distill_weight": 0.1, "batch_size": 64,
            },
        ),
    ],
)  # fmt: skip
def test_the_run_goes_back_to_the_state_nearest_to_unseen_samples(
    kind: str, settings: dict[str, float]
) -> None:
    Rewinding.states.clear()
    Rewinding.reference.clear()
    some = toy(kind)
    images, labels = some.test.tensors
    # unseen samples that are hard to get right, so that the end is not the best state
    hard = TensorDataset(images[labels == 1], torch.zeros(60, dtype=torch.int64))
    method = Rewinding(**settings)  # type: ignore[arg-type]  # numbers by name
    asked = forget(some.model).instances(CLASS_0).using(method).on("cpu")
    result = asked.validate(DataLoader(hard, batch_size=64)).run(some.loader(), guard=None)
    errors = [error for _, error in Rewinding.states]
    assert len(errors) == settings["epochs"] + 1
    chosen = nearest_state(errors, Rewinding.reference[0])
    assert 0 < chosen < settings["epochs"]
    snapshot = dict(Rewinding.states[chosen][0])
    after = weights(some.model)
    assert changed(snapshot, {name: after[name] for name in snapshot}) == []
    assert changed(dict(Rewinding.states[-1][0]), {n: after[n] for n in snapshot}) != []
    assert any(f"went back to epoch {chosen} of" in note for note in result.notes)


def test_unseen_samples_of_other_classes_do_not_enter_the_reference() -> None:
    images, labels = toy("cnn").test.tensors
    hard = images[labels == 1], torch.zeros(60, dtype=torch.int64)
    easy = images[labels >= 2].repeat(5, 1, 1, 1), labels[labels >= 2].repeat(5)
    ends, notes = [], []
    for samples in (hard, [torch.cat(pair) for pair in zip(hard, easy, strict=True)]):
        some = toy("cnn")
        method = ScrubRewind(lr=0.02, epochs=4, max_epochs=2)
        asked = forget(some.model).instances(CLASS_0).using(method).on("cpu")
        asked = asked.validate(DataLoader(TensorDataset(*samples), batch_size=64))
        notes.append(asked.run(some.loader(), guard=None).notes)
        ends.append(weights(some.model))
    assert notes[0] == notes[1]
    assert changed(*ends) == []


def test_epoch_zero_can_be_the_nearest() -> None:
    some = toy("cnn")
    before = weights(some.model)

    class Worse(ScrubRewind):
        """Ends so that unseen samples are predicted well and forgotten ones are not."""

        def start_epoch(self, run: Run) -> State:
            state = dict(super().start_epoch(run))
            if run.epoch > 0:
                state[f"error/{run.epoch}"] = torch.tensor(0.9)
            return state

    method = Worse(lr=0.0, epochs=2)
    asked = forget(some.model).instances(CLASS_0).using(method).on("cpu")
    asked.validate(unseen(some, [0])).run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize("classes", [None, [1, 2, 3]])
def test_refuses_without_unseen_samples_of_the_classes(classes: list[int] | None) -> None:
    some = toy("cnn")
    before = weights(some.model)
    asked = forget(some.model).instances(CLASS_0).using(ScrubRewind()).on("cpu")
    if classes is not None:
        asked = asked.validate(unseen(some, classes))
    with pytest.raises(DataError, match=r"validation samples .* found no.* pass `\.validate\("):
        asked.run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


def test_training_is_that_of_scrub() -> None:
    ends = []
    for kind in (Scrub, ScrubRewind):
        some = toy("cnn")
        last: list[Snapshot] = []

        class Kept(kind):  # type: ignore[valid-type, misc]  # one subclass of each of the two
            def passed(self, run: Run) -> str | None:
                last.append(run.snapshot())  # noqa: B023  each class is used within its turn
                return None

        asked = forget(some.model).instances(CLASS_0).using(Kept(lr=0.05, epochs=2)).on("cpu")
        asked.validate(unseen(some, [0])).run(some.loader(), guard=None)
        ends.append(dict(last[-1]))
    assert changed(*ends) == []
