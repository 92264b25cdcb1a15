from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.errors import BadTarget, DataError
from forgetkit.method import State
from forgetkit.methods.amun import Amun
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import changed, weights


class Watched(Amun):
    """Keeps what setup made, and counts how often it was called."""

    seen: dict[str, Tensor] = {}  # noqa: RUF012  shared on purpose
    calls: list[int] = []  # noqa: RUF012  shared on purpose

    def setup(self, run: Run) -> State:
        state = super().setup(run)
        self.calls.append(1)
        self.seen.clear()
        self.seen.update(state)
        return state


@pytest.mark.parametrize("kind", TOYS)
def test_every_kept_label_is_the_models_own_and_differs_from_that_of_x(kind: str) -> None:
    some = toy(kind)
    method = Watched(attack_steps=5, epochs=3, lr=0.001)
    Watched.calls.clear()
    request = forget(some.model).instances(range(40)).using(method).on("cpu")
    result = request.run(some.loader(), guard=None)
    fresh = toy(kind).model.eval()
    images, labels = Watched.seen["attacked inputs"], Watched.seen["labels"]
    assert len(images) == len(labels) == 40
    with torch.no_grad():
        own = fresh(some.train.tensors[0][:40]).argmax(dim=1)
        assert torch.equal(fresh(images).argmax(dim=1), labels)  # made once, by the incoming model
    assert not (labels == own).any()
    assert len(Watched.calls) == 1
    assert result.history[0]["no_neighbour"] == 0.0


def test_radius_is_the_first_doubling_that_succeeds() -> None:
    """Literal twin for the first images: radii 0.05, 0.1, ... in unit space, one at a time."""
    some = toy("cnn")
    method = Watched(attack_steps=5, epochs=1, lr=0.0, weight_decay=0.0)
    forget(some.model).instances(range(6)).using(method).on("cpu").run(some.loader(), guard=None)
    model = toy("cnn").model.eval().requires_grad_(requires_grad=False)
    images = toy("cnn").train.tensors[0][:6]
    low, high = images.min(), images.max()
    for row in range(6):
        x = ((images[row] - low) / (high - low))[None]
        own = model(images[row][None]).argmax(dim=1)
        radius = 0.05
        while True:
            delta = torch.zeros_like(x)
            for _ in range(5):
                delta.requires_grad_()
                logits = model(low + (x + delta) * (high - low)).double()
                (g,) = torch.autograd.grad(functional.cross_entropy(logits, own), delta)
                delta = (delta.detach() + radius / 10 * g / g.norm() + x).clamp(0, 1) - x
                delta = delta * min(1.0, radius / float(delta.norm()))
            moved = low + (x + delta) * (high - low)
            if int(model(moved).argmax()) != int(own):
                break
            radius *= 2
        ours = (Watched.seen["attacked inputs"][row] - low) / (high - low)
        assert float((ours - x[0]).norm()) <= radius + 1e-4
        assert float((ours - x[0]).norm()) > 0.4 * radius  # five steps of a tenth, nearly straight
        assert float((ours - (x + delta)[0]).norm()) < 0.1 * radius


@pytest.mark.parametrize(("data", "size"), [("all", 280), ("forget", 80), ("adversarial", 40)])
def test_step_follows_the_literal_objective(data: str, size: int) -> None:
    """One step over the joint set: the mean cross-entropy of all parts."""
    some = toy("cnn")
    method = Watched(data=data, attack_steps=5, epochs=1, batch_size=65536, lr=1e-4)
    request = forget(some.model).instances(range(40)).using(method).on("cpu")
    result = request.run(some.loader(), guard=None)
    images, labels = toy("cnn").train.tensors
    made = Watched.seen["attacked inputs"], Watched.seen["labels"]
    parts = {
        "all": [made, (images, labels)],
        "forget": [made, (images[:40], labels[:40])],
        "adversarial": [made],
    }[data]
    joint = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    assert len(joint[1]) == size
    with torch.no_grad():
        expected = functional.cross_entropy(toy("cnn").model.eval()(joint[0]), joint[1])
    assert result.history[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_making_the_set_leaves_the_model_as_it_is() -> None:
    some = toy("vit")
    before = weights(some.model)
    request = forget(some.model).instances(range(20)).using("amun", lr=0.0, epochs=1)
    request.on("cpu").run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


def test_needs_retained_samples_only_where_it_trains_on_them() -> None:
    assert Amun().needs == ("forget", "retain")
    assert Amun(data="forget").needs == ("forget",)
    assert Amun(data="adversarial").needs == ("forget",)


class Memorised:
    """A small net that knows 20 wrong labels by heart, its data and unseen samples."""

    def __init__(self, seed: int) -> None:
        drawn = Generator().manual_seed(seed)
        patterns = torch.randn(4, 1, 8, 8, generator=Generator().manual_seed(1234))
        right = torch.arange(4).repeat(40)
        self.images = patterns[right] + torch.randn(160, 1, 8, 8, generator=drawn)
        self.labels = torch.cat([(right[:20] + 1) % 4, right[20:]])
        self.unseen_labels = torch.arange(4).repeat(200)
        noise = torch.randn(800, 1, 8, 8, generator=drawn)
        self.unseen = patterns[self.unseen_labels] + noise
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        optimizer = torch.optim.Adam(self.model.parameters(), 5e-3)
        for _ in range(15):
            for rows in torch.randperm(160).split(16):
                optimizer.zero_grad()
                entropy = functional.cross_entropy(self.model(self.images[rows]), self.labels[rows])
                entropy.backward()
                optimizer.step()

    def confidence(self) -> float:
        """Return the mean probability of the memorised labels."""
        with torch.no_grad():
            probabilities = self.model(self.images[:20]).softmax(dim=1)
        return float(probabilities[torch.arange(20), self.labels[:20]].mean())

    def test_accuracy(self) -> float:
        with torch.no_grad():
            predicted = self.model(self.unseen).argmax(dim=1)
        return float((predicted == self.unseen_labels).float().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_confidence_in_memorised_labels_falls_and_the_rest_is_kept(seed: int) -> None:
    some = Memorised(seed)
    before, kept = some.confidence(), some.test_accuracy()
    assert before > 0.9
    loader = DataLoader(TensorDataset(some.images, some.labels), batch_size=16)
    request = forget(some.model).instances(range(20)).using("amun").on("cpu")
    result = request.run(loader, guard=None)
    assert some.confidence() <= before - 0.05
    assert some.test_accuracy() >= kept - 0.02
    assert result.after["forget"].accuracy == 1.0  # D_f keeps its labels


def test_classes_are_refused() -> None:
    some = toy("cnn")
    with pytest.raises(BadTarget, match="amun"):
        forget(some.model).classes([3]).using("amun").on("cpu").run(some.loader(), guard=None)


def test_nothing_to_train_on_is_said() -> None:
    some = toy("cnn")
    before = weights(some.model)
    method = Amun(data="adversarial", attack_radius=1e-6, doublings=0, attack_steps=1)
    request = forget(some.model).instances(range(4)).using(method).on("cpu")
    with pytest.raises(DataError, match="raise attack_radius or doublings"):
        request.run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []
