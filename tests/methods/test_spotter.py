from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.masked_targets import evenly_mixed, likeness
from forgetkit.method import Facts, Pair
from forgetkit.methods.spotter import Spotter
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Terms

HEADS = {"cnn": "fc", "vit": "head"}


def images_of(some: Toy, label: int = 3) -> Tensor:
    return some.train.tensors[0][some.train.tensors[1] == label]


def features_of(model: nn.Module, kind: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    head = model.get_submodule(HEADS[kind])
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model.eval()(images)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("kind", TOYS)
def test_without_neighbours_and_spreading_it_is_delete(kind: str) -> None:
    shared = {"lr": 0.002, "batch_size": 16, "check_every": 2, "epochs": 3, "weight_decay": 5e-4}
    own = {"forget_weight": 1.0, "spread_weight": 0.0, "least_epochs": 1}
    outcomes = []
    for slug, more in (("spotter", own), ("delete", {"reference": 0.0})):
        some = toy(kind)
        request = forget(some.model).classes([3]).using(slug, **{**shared, **more}).on("cpu")
        request.run(some.forget_loader(), guard=None)
        outcomes.append(weights(some.model))
    assert not changed(*outcomes)


@pytest.mark.parametrize("kind", TOYS)
def test_neighbours_lean_towards_the_runner_up_and_stay_near(kind: str) -> None:
    some = toy(kind)
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching(Spotter):
        def loss(self, batch: Pair, run: Run) -> Terms:
            if batch.forget is not None:
                near = self.neighbours(batch.forget, run).inputs
                start = batch.forget.inputs
                assert isinstance(near, Tensor)
                assert isinstance(start, Tensor)
                seen.append((start, near.detach()))
            return super().loss(batch, run)

    low, high = images_of(some).min(), images_of(some).max()
    method = Watching(epochs=1, batch_size=16, lr=0.01)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.forget_loader(), guard=None)
    start, near = torch.cat([pair[0] for pair in seen]), torch.cat([pair[1] for pair in seen])
    assert len(start) == 60
    width = high - low
    assert float((near - start).abs().max()) <= float(0.03 * width) + 1e-5
    assert float((near - start).abs().mean()) >= float(0.02 * width)
    assert float(near.min()) >= float(low) - 1e-5
    assert float(near.max()) <= float(high) + 1e-5
    model = toy(kind).model.eval()
    with torch.no_grad():
        before, after = model(start).softmax(dim=1), model(near).softmax(dim=1)
    rows = torch.arange(60)
    runner_up = before[:, :3].argmax(dim=1)
    assert bool((after[rows, runner_up] > before[rows, runner_up]).all())


def literal_neighbours(model: nn.Module, images: Tensor) -> Tensor:
    """Return the images after two steps towards the runner-up, in their own units."""
    low, width = images.min(), images.max() - images.min()
    unit = (images - low) / width
    with torch.no_grad():
        target = model(images)[:, :3].argmax(dim=1)
    near = unit.clone()
    for _ in range(2):
        near.requires_grad_()
        loss = nn.functional.cross_entropy(model(near * width + low), target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, near)
        near = near.detach() - 0.02 * gradient.sign()
        near = torch.max(torch.min(near, unit + 0.03), unit - 0.03).clamp(0.0, 1.0)
    return near * width + low


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_neighbours_and_targets_of_a_later_step_are_the_originals(
    kind: str, temperature: float
) -> None:
    images, model = images_of(toy(kind)), toy(kind).model.eval()
    near = literal_neighbours(model, images)
    rows, states = [], []
    for epochs in (1, 2):
        some = toy(kind)
        request = forget(some.model).classes([3]).on("cpu")
        request = request.using(
            "spotter", epochs=epochs, least_epochs=epochs, batch_size=65536, lr=0.02,
            attack_steps=2, attack_step=0.02, forget_weight=0.6, temperature=temperature,
        )  # fmt: skip
        rows.append(request.run(some.forget_loader(), guard=None).history[-1])
        states.append(some.model.eval())
    for name, weight, inputs in (("forget", 0.6, images), ("near", 0.4, near)):
        with torch.no_grad():
            teacher = (model(inputs)[:, :3].double() / temperature).softmax(dim=1)
            student = (states[0](inputs).double() / temperature).log_softmax(dim=1)[:, :3]
        divergence = float((teacher * (teacher.log() - student)).sum(dim=1).mean())
        assert rows[1][f"loss_{name}"] == pytest.approx(weight * divergence, rel=1e-3)


@pytest.mark.parametrize("kind", TOYS)
def test_first_loss_is_the_literal_one(kind: str) -> None:
    """One batch at the original weights: -log(1 - p_y) at x and x', and the cosines of pairs."""
    some = toy(kind)
    images = images_of(some)
    model = toy(kind).model.eval()
    near = literal_neighbours(model, images)
    with torch.no_grad():
        here = model(images).double().softmax(dim=1)[:, 3]
        there = model(near).double().softmax(dim=1)[:, 3]
    vectors = nn.functional.normalize(features_of(model, kind, images), dim=1)
    pairs = [float(vectors[i] @ vectors[j]) for i in range(60) for j in range(60) if i != j]
    settings = {"attack_steps": 2, "attack_step": 0.02, "forget_weight": 0.6, "spread_weight": 0.5}
    request = forget(some.model).classes([3])
    request = request.using("spotter", epochs=1, batch_size=65536, lr=1e-3, **settings).on("cpu")
    row = request.run(some.forget_loader(), guard=None).history[0]
    assert row["loss_forget"] == pytest.approx(-0.6 * float((1 - here).log().mean()), rel=1e-3)
    assert row["loss_near"] == pytest.approx(-0.4 * float((1 - there).log().mean()), rel=1e-3)
    assert row["loss_spread"] == pytest.approx(0.5 * sum(pairs) / len(pairs), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
def test_features_end_less_alike_than_after_as_many_epochs_of_delete(kind: str) -> None:
    delete = {"forget_weight": 1.0, "spread_weight": 0.0}  # bit for bit, as the first test shows
    alike = []
    for settings in ({}, delete):
        some = toy(kind)
        shared = {"lr": 0.002, "batch_size": 16, "epochs": 10, "least_epochs": 10}
        request = forget(some.model).classes([3]).using("spotter", **{**shared, **settings})
        request.on("cpu").run(some.forget_loader(), guard=None)
        features = features_of(some.model, kind, images_of(some))
        alike.append(float(likeness(features, torch.zeros(len(features)))))
    assert alike[0] < alike[1] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("label", range(4))
def test_every_class_is_forgotten_and_the_rest_kept(kind: str, label: int) -> None:
    some = toy(kind)
    others = [other for other in range(4) if other != label]
    kept = some.accuracy(some.test, others)
    request = forget(some.model).classes([label])
    lr = {"cnn": 0.0005, "vit": 0.005}[kind]
    request = request.using("spotter", lr=lr, batch_size=32, check_every=1).on("cpu")
    result = request.run(some.forget_loader(label), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert len(result.history) >= 3
    assert some.accuracy(some.test, [label]) <= 0.1
    assert some.accuracy(some.test, others) >= kept - 0.05


def test_two_classes_are_mixed_in_every_batch() -> None:
    some = toy("cnn")
    seen: list[list[int]] = []

    class Watching(Spotter):
        def loss(self, batch: Pair, run: Run) -> Terms:
            if batch.forget is not None:
                seen.append(batch.forget.labels.tolist())
            return super().loss(batch, run)

    method = Watching(epochs=4, batch_size=8, lr=0.005)
    result = forget(some.model).classes([1, 3]).using(method).on("cpu").run(
        some.loader(), guard=None
    )  # fmt: skip
    assert result.after["forget"].accuracy == 0.0
    assert all(labels.count(1) == labels.count(3) == 4 for labels in seen)
    predicted = some.model.eval()(torch.cat([images_of(some, 1), images_of(some, 3)])).argmax(dim=1)
    assert not torch.isin(predicted, torch.tensor([1, 3])).any()


def test_classes_are_mixed_evenly_and_at_random() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 4)
    generator = torch.Generator().manual_seed(0)
    orders = [evenly_mixed(labels, generator) for _ in range(2)]
    assert not torch.equal(*orders)
    for order in orders:
        assert sorted(order.tolist()) == list(range(64))
        for batch in labels[order].split(16):
            counts = batch.bincount(minlength=3).tolist()
            assert abs(counts[0] - 10) <= 1
            assert abs(counts[1] - 5) <= 1
            assert counts[2] == 1


def test_step_size_follows_the_kind_of_network() -> None:
    facts = Facts("classes", 5000, retain_size=0, num_classes=10, transformer=False)
    assert Spotter().tuned(facts).lr == 1e-4
    wide = Facts("classes", 5000, retain_size=0, num_classes=10, transformer=True)
    assert Spotter().tuned(wide).lr == 5e-5
    assert Spotter(lr=0.3).tuned(wide).lr == 0.3


@pytest.mark.parametrize(("least", "steps"), [(1, 4), (2, 8)])
def test_it_may_stop_within_an_epoch_only_after_the_least_ones(least: int, steps: int) -> None:
    some = toy("cnn")
    method = Spotter(lr=0.02, batch_size=16, check_every=1, least_epochs=least)
    result = forget(some.model).classes([3]).using(method).on("cpu").run(some.forget_loader())
    assert result.history[-1]["steps"] == steps  # 60 samples: four steps an epoch
    first = Spotter(lr=0.02, batch_size=16, check_every=1, epochs=1)
    again = toy("cnn")
    forget(again.model).classes([3]).using(first).on("cpu").run(again.forget_loader())
    assert again.accuracy(again.train, [3]) == 0.0  # it was gone before that


@pytest.mark.parametrize("classes", [[2], [2, 3]])
def test_no_batch_is_left_with_one_sample(classes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((17,), 2), torch.full((16 if len(classes) > 1 else 40,), 3)])
    labels = torch.cat([labels, torch.arange(2).repeat(20)])
    images = torch.randn(len(labels), 8, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    method = Spotter(bn="train", batch_size=16, epochs=2, least_epochs=1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32)
    request = forget(model).classes(classes).using(method).on("cpu")
    result = request.run(loader, guard=None)  # 17 or 33 samples
    assert result.history[0]["steps"] == len(classes)
