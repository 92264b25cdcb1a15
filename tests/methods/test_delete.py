from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.method import Facts, Pair, State, build
from forgetkit.methods.delete import Delete
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Terms


def own_probability(kind: str, label: int) -> Tensor:
    some = toy(kind)
    images = some.train.tensors[0][some.train.tensors[1] == label]
    with torch.no_grad():
        logits: Tensor = some.model.eval()(images)
    return logits.softmax(dim=1)[:, label].double()


@pytest.mark.parametrize("kind", TOYS)
def test_first_loss_is_minus_the_log_of_what_is_left(kind: str) -> None:
    """At the original weights KL(t || p) = -log(1 - p_y), whatever the other classes."""
    some = toy(kind)
    request = forget(some.model).classes([3]).using("delete", epochs=1, batch_size=65536, lr=0.01)
    result = request.on("cpu").run(some.forget_loader(), guard=None)
    literal = [-math.log(1 - p) for p in own_probability(kind, 3).tolist()]
    assert result.history[0]["loss"] == pytest.approx(sum(literal) / len(literal), rel=1e-4)


def test_second_loss_is_the_literal_divergence_from_the_first_prediction() -> None:
    some, twin = toy("cnn"), toy("cnn").model.eval()
    images = some.train.tensors[0][some.train.tensors[1] == 3]
    with torch.no_grad():
        targets = twin(images) / 2.0
        targets[:, 3] = -math.inf
        targets = targets.softmax(dim=1)
    optimizer = torch.optim.SGD(twin.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(2):
        log_probs = (twin(images) / 2.0).log_softmax(dim=1)
        keep = [0, 1, 2]
        loss = (targets[:, keep] * (targets[:, keep].log() - log_probs[:, keep])).sum(dim=1).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    request = forget(some.model).classes([3])
    request = request.using("delete", epochs=2, batch_size=65536, lr=0.01, temperature=2.0)
    result = request.on("cpu").run(some.forget_loader(), guard=None)
    assert [row["loss"] for row in result.history] == pytest.approx(losses, rel=1e-4)
    for name, value in weights(some.model).items():
        assert torch.allclose(value, weights(twin)[name], atol=1e-5), name


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("label", range(4))
def test_every_class_is_forgotten_and_the_rest_kept(kind: str, label: int) -> None:
    some = toy(kind)
    others = [other for other in range(4) if other != label]
    kept = some.accuracy(some.train, others)
    request = forget(some.model).classes([label])
    lr = {"cnn": 0.0005, "vit": 0.005}[kind]
    request = request.using("delete", lr=lr, batch_size=32, check_every=1)
    result = request.on("cpu").run(some.forget_loader(label), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert some.accuracy(some.test, [label]) <= 0.1
    assert some.accuracy(some.train, others) >= kept - 0.03


@pytest.mark.parametrize("slug", ["delete", "su", "suli"])
def test_two_classes_are_not_poured_into_each_other(slug: str) -> None:
    some = toy("cnn")
    own = {"lr": 0.003, "layers": 3} if slug == "suli" else {"batch_size": 16, "check_every": 1}
    settings = {"lr": 0.005, "optimizer": "sgd", "epochs": 40, **own}
    request = forget(some.model).classes([1, 3]).using(slug, **settings)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0
    images, labels = some.train.tensors
    predicted = some.model.eval()(images[torch.isin(labels, torch.tensor([1, 3]))]).argmax(dim=1)
    assert not torch.isin(predicted, torch.tensor([1, 3])).any()


@pytest.mark.parametrize("kind", TOYS)
def test_delete_and_su_with_equal_settings_give_identical_weights(kind: str) -> None:
    outcomes = []
    for slug in ("delete", "su"):
        some = toy(kind)
        settings = {"lr": 0.002, "optimizer": "sgd", "batch_size": 16, "check_every": 2}
        more = {"epochs": 3, "epsilon": 0.01, "temperature": 2.0, "bn": "frozen"}
        request = forget(some.model).classes([3]).using(slug, **settings, **more)
        request.on("cpu").run(some.forget_loader(), guard=None)
        outcomes.append(weights(some.model))
    assert not changed(*outcomes)
    assert changed(outcomes[0], weights(toy(kind).model))


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Images of one class with other noise each time they are read."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index] + 0.1 * torch.randn_like(self.images[index])
        return image, torch.tensor(3)


def test_a_loader_that_augments_is_answered_by_the_frozen_copy() -> None:
    """Each batch's target belongs to the pixels of that batch: the first loss is -log(1 - p_y)."""
    some = toy("cnn")
    images = some.train.tensors[0][some.train.tensors[1] == 3]
    inside: list[float] = []
    first: list[Tensor] = []

    class Watching(Delete):
        def loss(self, batch: Pair, run: Run) -> Terms:
            assert "targets" not in run.state
            terms = super().loss(batch, run)
            if run.step == 0 and batch.forget is not None:
                first.append(run.logits(batch.forget).detach())
                inside.append(terms["forget"].item())
            return terms

    method = Watching(lr=0.001, epochs=2, batch_size=32)
    request = forget(some.model).classes([3]).using(method).on("cpu")
    request.run(DataLoader(Noisy(images), batch_size=32), guard=None)
    p = first[0].double().softmax(dim=1)[:, 3]
    assert inside[0] == pytest.approx(float(-(1 - p).log().mean()), rel=1e-4)


def test_predicted_class_instead_of_the_label() -> None:
    """With wrong labels ``argmax`` takes away what the model says, ``auto`` what the label says."""
    some = toy("cnn")
    images = some.train.tensors[0][some.train.tensors[1] == 0]
    labels = torch.full((len(images),), 3)
    probs = some.model.eval()(images).detach().double().softmax(dim=1)
    expected = {"auto": probs[:, 3], "argmax": probs.max(dim=1).values}
    for removed, gone in expected.items():
        some = toy("cnn")
        request = forget(some.model).classes([3])
        request = request.using("delete", epochs=1, batch_size=65536, removed=removed, lr=0.01)
        data = TensorDataset(images, labels)
        result = request.on("cpu").run(DataLoader(data, batch_size=32), guard=None)
        literal = float(-(1 - gone).log().mean())
        assert result.history[0]["loss"] == pytest.approx(literal, rel=1e-3)


def test_step_size_follows_the_kind_of_network() -> None:
    facts = Facts("classes", forget_size=5000, retain_size=0, num_classes=10, transformer=False)
    assert Delete().tuned(facts).lr == 1e-4
    assert Delete(lr=0.3).tuned(facts).lr == 0.3
    wide = Facts("classes", forget_size=5000, retain_size=0, num_classes=10, transformer=True)
    assert Delete().tuned(wide).lr == 5e-5
    assert build("delete", {"preset": "code"}).hyperparameters()["bn"] == "train"


class Kept(Delete):
    """Shows the targets."""

    seen: ClassVar[list[Tensor]] = []

    def setup(self, run: Run) -> State:
        """Keep what the run distils."""
        state = super().setup(run)
        self.seen.append(state["targets"].clone())
        return state


def test_the_label_alone_may_be_removed() -> None:
    for method in (Kept(epochs=1), Kept(epochs=1, removed="label")):
        some = toy("cnn")
        request = forget(some.model).classes([2, 3]).using(method)
        request.on("cpu").run(some.loader(), guard=None)
    every, own = Kept.seen
    labels = some.train.tensors[1]
    gone = labels[(labels == 2) | (labels == 3)][:, None]
    assert float(own.gather(1, gone).abs().max()) == 0.0
    assert float(own.gather(1, 5 - gone).max()) > 0.0
    assert float(every[:, 2:].abs().max()) == 0.0
    assert build("delete", {"preset": "code"}).to_json()["removed"] == "label"


def test_the_codes_preset_makes_all_its_epochs() -> None:
    for all_epochs in (True, False):
        request = forget(toy("cnn").model).classes([3]).on("cpu")
        request = request.using("delete", preset="code", lr=0.02, all_epochs=all_epochs)
        result = request.run(toy("cnn").loader(), guard=None)
        assert result.after["forget"].accuracy == 0.0
        assert ("all 20 epochs done" in result.stopped_because) == all_epochs
        assert ("reached its target" in result.stopped_because) != all_epochs


def test_the_codes_preset_does_not_say_that_single_samples_stop_it() -> None:
    for preset in ({"preset": "code"}, {}):
        request = forget(toy("cnn").model).instances(range(8)).on("cpu")
        request = request.using("delete", epochs=2, lr=0.001, **preset)
        result = request.run(toy("cnn").loader(), guard=None)
        assert any("trains until" in note for note in result.notes) == (not preset)
        assert len(result.history) == 2
