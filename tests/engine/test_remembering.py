from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from bare_cards import bare_card
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from forgetkit import forget
from forgetkit.data.randomness import LOOKED_AT
from forgetkit.data.sets import StoredSet
from forgetkit.data.sources import PROBED
from forgetkit.engine.measuring import SetAccuracy
from forgetkit.engine.remembering import Remembered
from forgetkit.engine.run import Run
from forgetkit.method import Card, Method
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import SampleSet


class Reads(Dataset[tuple[Tensor, int]]):
    """Counts how often a sample is read."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets, self.read = images, targets, 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return self.images[index], int(self.targets[index])


def asked(model: nn.Module) -> tuple[Remembered, list[SampleSet]]:
    """Return what remembers, and the sets that were really measured."""
    measured: list[SampleSet] = []

    def measure(samples: SampleSet, labels: Tensor | None) -> SetAccuracy:
        measured.append(samples)
        return SetAccuracy(float(len(measured)), 0.0, len(samples) + (labels is not None), {})

    return Remembered(model, measure), measured


def some_set() -> StoredSet:
    return StoredSet(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))


def test_a_set_is_measured_once_at_the_same_weights() -> None:
    remembered, measured = asked(nn.Linear(2, 2))
    first, second, labels = some_set(), some_set(), torch.zeros(4)
    assert remembered(first) == remembered(first)
    assert remembered(first) != remembered(second)
    assert remembered(first, labels) != remembered(first)
    assert remembered(first, labels) == remembered(first, labels)
    assert len(measured) == 3


def test_every_way_to_write_a_weight_or_a_statistic_counts() -> None:
    linear = nn.Linear(2, 2)
    model = nn.Sequential(linear, nn.BatchNorm1d(2)).train()
    remembered, measured = asked(model)
    kept = some_set()

    def step(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()

    def write() -> None:
        with torch.no_grad():
            linear.bias.copy_(torch.ones(2))

    def write_data() -> None:
        linear.bias.data[0] = 5.0

    def swap_rows() -> None:
        linear.weight.data = linear.weight.data.flip(0)

    remembered(kept)
    for change in (
        lambda: step(torch.optim.SGD(model.parameters(), 0.1)),
        lambda: step(torch.optim.Adam(model.parameters(), 0.1, foreach=True)),
        lambda: model(torch.randn(4, 2)),
        write,
        write_data,
        swap_rows,
    ):
        before = len(measured)
        change()
        remembered(kept)
        assert len(measured) == before + 1


def test_nothing_is_remembered_where_writes_are_not_counted() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    remembered, measured = asked(model)
    kept = some_set()
    remembered(kept)
    remembered(kept)
    assert len(measured) == 2


def test_a_run_reads_the_forget_set_no_more_than_its_weights_change() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    data = Reads(images[labels == 3], labels[labels == 3])
    request = forget(some.model).classes([3]).using("neggrad", epochs=2, lr=1e-6).on("cpu")
    result = request.run(DataLoader(data, batch_size=64), guard=None)
    assert len(result.history) == 2
    # before; two epochs, each with a step's reading and one that measures; the last one is "after"
    # for random augmentation and for labels, and a few by which the model is tried
    looked_at = 2 * LOOKED_AT + PROBED
    assert data.read < 5.2 * len(data) + looked_at
    assert result.after["forget"].accuracy == result.history[-1]["forget_accuracy"]


@dataclass(frozen=True, kw_only=True)
class Uncounted(Method):
    """Lowers the logits of what is to be forgotten in a way that autograd does not count."""

    card: ClassVar[Card] = bare_card("uncounted", "head", "Writes to data.")

    def edit(self, run: Run) -> None:
        run.parameters["fc.bias"].data[list(run.forget_classes)] = -50.0


class Vector(Uncounted):
    """The same, which gives every parameter other memory."""

    card: ClassVar[Card] = replace(Uncounted.card, slug="vector")

    def edit(self, run: Run) -> None:
        parameters = list(run.parameters.values())
        vector = nn.utils.parameters_to_vector(parameters).clone()
        vector[-1] = -50.0  # the bias of class 3
        nn.utils.vector_to_parameters(vector, parameters)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", [Uncounted, Vector])
def test_a_write_that_autograd_does_not_count_is_measured_and_stays(
    kind: type[Uncounted], half: bool
) -> None:
    some = toy("cnn")
    model = some.model.bfloat16() if half else some.model
    before, held = weights(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    result = forget(model).classes([3]).using(kind()).on("cpu").run(some.loader(), guard=None)
    assert result.before["forget"].accuracy > 0.9
    assert result.after["forget"].accuracy == some.accuracy(some.train, [3]) == 0.0
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == held
    assert result.patch.names == ("fc.bias",) == tuple(changed(before, weights(model)))
    result.undo()
    assert not changed(before, weights(model))


def test_a_run_of_the_head_looks_at_its_own_tensors_alone() -> None:
    model, asked = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []

    def measure(samples: SampleSet, labels: Tensor | None) -> SetAccuracy:
        asked.append((samples, labels))
        return SetAccuracy(1.0, 0.0, 1, {})

    samples = StoredSet(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    remembered = Remembered(model, measure, list(model[1].parameters()))
    for written in (None, None, model.get_parameter("0.weight"), model.get_parameter("1.weight")):
        if written is not None:
            written.data.add_(1.0)
        remembered(samples)
    assert len(asked) == 2
