from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.errors import DataError
from forgetkit.method import Facts, Pair, Pass, State
from forgetkit.methods import unsir
from forgetkit.methods.unsir import Unsir, some_per_class
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Terms

SMALL = {"noise_size": 16, "copies": 8, "batch_size": 32, "lr": 0.02, "repair_lr": 0.01}


class Spy(Unsir):
    """Writes down what was made, what each step read, and the accuracy after each pass."""

    states: ClassVar[list[State]] = []
    read: ClassVar[dict[str, list[Tensor]]] = {}
    images: ClassVar[dict[str, list[Tensor]]] = {}
    kept: ClassVar[dict[str, float]] = {}

    def setup(self, run: Run) -> State:
        before = weights(run.model)
        state = super().setup(run)
        assert changed(before, weights(run.model)) == []
        self.states.append(state)
        return state

    def loss(self, batch: Pair, run: Run) -> Terms:
        assert batch.forget is None
        assert batch.retain is not None
        assert isinstance(batch.retain.inputs, Tensor)
        self.read.setdefault(run.phase, []).append(batch.retain.labels)
        self.images.setdefault(run.phase, []).append(batch.retain.inputs)
        return super().loss(batch, run)

    def passed(self, run: Run) -> str | None:
        self.kept[run.phase] = run.accuracy(run.retain)
        return None


def spied(some: Toy, classes: list[int], **settings: float) -> State:
    for record in (Spy.states, Spy.read, Spy.images, Spy.kept):
        record.clear()
    method = Spy(**{**SMALL, **settings})  # type: ignore[arg-type]  # numbers by name
    forget(some.model).classes(classes).using(method).on("cpu").run(some.loader(), guard=None)
    return Spy.states[0]


def test_impair_pass_reads_all_noise_and_the_kept_samples() -> None:
    state = spied(toy("cnn"), [1, 3], retain_per_class=25)
    impair, repair = torch.cat(Spy.read["impair"]), torch.cat(Spy.read["repair"])
    assert torch.bincount(impair).tolist() == [25, 16 * 8, 25, 16 * 8]
    assert torch.bincount(repair).tolist() == [25, 0, 25]
    images = torch.cat(Spy.images["impair"])
    for label in (1, 3):
        found = images[impair == label].flatten(1).unique(dim=0)
        made = state["noise"][state["labels"] == label].flatten(1).unique(dim=0)
        assert torch.equal(found, made)
    order = impair.tolist()
    assert order != sorted(order)  # shuffled


@pytest.mark.parametrize("kind", TOYS)
def test_noise_raises_the_loss_of_its_class_and_leaves_the_model(kind: str) -> None:
    some, original = toy(kind), toy(kind)
    state = spied(some, [1, 3], noise_steps=40)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for label in (1, 3):
            own = torch.full((16,), label)
            start = torch.randn(16, 1, 8, 8, generator=generator)
            made = state["noise"][state["labels"] == label]
            logits = [original.model.eval()(images) for images in (start, made)]
            before, after = (float(functional.cross_entropy(z, own)) for z in logits)
            assert after > before + 1.0


@pytest.mark.parametrize("kind", TOYS)
def test_no_forget_image_is_used(kind: str) -> None:
    outcomes = []
    for wiped in (False, True):
        some = toy(kind)
        images, labels = some.train.tensors
        data = images.clone()
        if wiped:
            data[labels == 3] = 1e6
        loader = DataLoader(TensorDataset(data, labels), batch_size=32)
        asked = forget(some.model).classes([3]).using(Unsir(**SMALL)).on("cpu")  # type: ignore[arg-type]  # by name
        asked.run(loader, guard=None)
        outcomes.append(weights(some.model))
    assert changed(*outcomes) == []


class Guarded(TensorDataset):
    """Images of the class to forget, which training must not read."""

    training = False

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if Guarded.training:
            raise AssertionError(f"forget image {index} was read in training")
        images, labels = self.tensors
        return images[index], labels[index]


def test_forget_loader_is_not_read_in_training() -> None:
    class Watched(Unsir):
        def setup(self, run: Run) -> State:
            Guarded.training = True
            return super().setup(run)

        def passed(self, run: Run) -> str | None:
            Guarded.training = run.phase != "repair"
            return None

    some = toy("cnn")
    images, labels = some.train.tensors
    lost = Guarded(images[labels == 3], labels[labels == 3])
    kept = DataLoader(TensorDataset(images[labels != 3], labels[labels != 3]), batch_size=32)
    method = Watched(**SMALL)  # type: ignore[arg-type]  # numbers by name
    asked = forget(some.model).classes([3]).using(method).retain(kept).on("cpu")
    try:
        asked.run(DataLoader(lost, batch_size=32), guard=None)
    finally:
        Guarded.training = False


def test_repair_brings_the_kept_classes_back() -> None:
    spied(toy("cnn"), [3], lr=0.05)
    assert Spy.kept["repair"] > Spy.kept["impair"] + 0.05


def test_some_per_class_takes_the_smallest_draws() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    draws = torch.tensor([0.9, 0.2, 0.1, 0.3, 0.5, 0.7])
    assert some_per_class(labels, draws, 2).tolist() == [1, 2, 3, 4, 5]
    assert some_per_class(labels, draws, 1).tolist() == [1, 2, 5]


@pytest.mark.parametrize(("transformer", "expected"), [(False, (0.02, 0.01)), (True, (1e-4, 1e-4))])
def test_step_sizes_follow_the_network(transformer: bool, expected: tuple[float, float]) -> None:
    facts = Facts("classes", 10, 100, num_classes=4, transformer=transformer)
    tuned = Unsir().tuned(facts)
    assert (tuned.lr, tuned.repair_lr) == expected
    assert Unsir(lr=0.5, repair_lr=0.25).tuned(facts).lr == 0.5


class Named(torch.nn.Module):
    """A classifier of two inputs that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(64, 4)

    def forward(self, pixel_values: Tensor, scale: Tensor) -> Tensor:
        logits: Tensor = self.fc(scale[:, None] * pixel_values.flatten(1))
        return logits


def test_named_inputs_are_refused() -> None:
    images, labels = toy("cnn").train.tensors
    rows = [
        {"pixel_values": image, "scale": torch.tensor(1.0), "labels": label}
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    asked = forget(Named()).classes([3]).using(Unsir()).on("cpu")
    with pytest.raises(DataError, match="expected images as one tensor, found named inputs pixel"):
        asked.run(DataLoader(rows, batch_size=32), guard=None)  # type: ignore[arg-type]  # a list is a map-style data set


def test_both_passes_begin_with_a_new_optimiser_and_have_their_own_rates() -> None:
    seen: list[tuple[str, float | None, bool]] = []

    class Watched(Unsir):
        def passes(self, run: Run) -> Sequence[Pass]:
            made = super().passes(run)
            seen.extend((one.name, one.lr, one.fresh_optimizer) for one in made)
            return made

    some = toy("cnn")
    method = Watched(epochs=1, lr=0.01, repair_lr=0.003, noise_size=4, noise_steps=2)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert seen == [("impair", None, True), ("repair", 0.003, True)]


def test_the_noise_starts_normal_and_is_made_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[Tensor] = []

    def watched(start: Tensor, label: int, _: object, **settings: object) -> Tensor:
        assert (label, settings) == (3, {"energy_weight": 0.3, "lr": 0.7, "steps": 5})
        starts.append(start)
        return start

    monkeypatch.setattr(unsir, "error_maximising_noise", watched)
    some = toy("cnn")
    request = forget(some.model).classes([3]).on("cpu")
    request = request.using(
        "unsir", epochs=1, noise_size=256, noise_steps=5, noise_lr=0.7, energy_weight=0.3
    )
    request.run(some.loader(), guard=None)
    assert float(starts[0].mean()) == pytest.approx(0.0, abs=0.05)
    assert float(starts[0].std()) == pytest.approx(1.0, abs=0.05)
