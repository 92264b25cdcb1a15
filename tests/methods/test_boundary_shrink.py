from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.method import State
from forgetkit.methods.boundary_shrink import BoundaryShrink
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import changed, weights


class Watched(BoundaryShrink):
    """Keeps the labels that setup found."""

    labels: dict[str, Tensor] = {}  # noqa: RUF012  shared on purpose

    def setup(self, run: Run) -> State:
        state = super().setup(run)
        self.labels.clear()
        self.labels.update(state)
        return state


class Plane(nn.Module):
    """Three classes in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs)
        return logits


def test_label_is_the_class_first_reached_along_the_sign() -> None:
    model = Plane()
    points = torch.tensor([[0.50, 0.45], [0.60, 0.50], [0.10, 0.05], [1.00, 0.00]])
    loader = DataLoader(TensorDataset(points, torch.zeros(4, dtype=torch.long)), batch_size=4)
    method = Watched(attack_step=0.2, bounds=(-1.0, 1.0), epochs=1, lr=0.0)
    result = forget(model).classes([0]).using(method).on("cpu").run(loader, guard=None)
    expected = []
    for point in points:  # 0.2 of a range of width 2 is 0.4 in input units
        leaf = point.clone().requires_grad_()
        functional.cross_entropy(model(leaf[None]), torch.tensor([0])).backward()
        assert leaf.grad is not None
        reached = [
            int(model((point + length * leaf.grad.sign()).clamp(-1, 1)[None]).argmax())
            for length in torch.linspace(0, 0.4, 400)
        ]
        other = model(point[None])[0].detach().clone()
        other[0] = -torch.inf
        expected.append(next((k for k in reached if k != 0), int(other.argmax())))
    assert Watched.labels["labels"].tolist() == expected
    assert result.history[0]["fallback_labels"] == 1.0  # the last point stays in its class


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("step", [0.0, 0.02, 0.3])
def test_no_label_is_the_own_or_a_forgotten_one(kind: str, step: float) -> None:
    some = toy(kind)
    method = Watched(attack_step=step, epochs=1)
    request = forget(some.model).classes([1, 3]).using(method).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert set(Watched.labels["labels"].tolist()) <= {0, 2}
    if step == 0.0:  # no attack at all: everything falls back to the best other class
        assert result.history[0]["fallback_labels"] == 120.0


def test_retry_reaches_more_samples() -> None:
    counts = []
    for retry in (0, 4):
        some = toy("vit")
        method = BoundaryShrink(attack_step=0.05, retry=retry, epochs=1)
        request = forget(some.model).classes([3]).using(method).on("cpu")
        counts.append(request.run(some.loader(), guard=None).history[0]["fallback_labels"])
    assert counts[1] < counts[0]


@pytest.mark.parametrize("steps", [1, 6])
def test_attack_keeps_to_its_radius_and_the_range(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgetkit.methods import boundary_shrink

    seen: list[tuple[Tensor, Tensor]] = []
    from forgetkit.attacks import sign_attack as original

    def watched(start: Tensor, *args: object, **kwargs: object) -> Tensor:
        moved: Tensor = original(start, *args, **kwargs)  # type: ignore[arg-type]  # passed on
        seen.append((start, moved))
        return moved

    monkeypatch.setattr(boundary_shrink, "sign_attack", watched)
    some = toy("cnn")
    method = BoundaryShrink(attack_step=0.1, attack_steps=steps, epochs=1)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert seen
    for start, moved in seen:
        assert float((moved - start).abs().max()) == pytest.approx(0.1, abs=1e-5)
        assert float(moved.min()) >= 0.0
        assert float(moved.max()) <= 1.0


@pytest.mark.parametrize(("steps", "share"), [(1, 1.0), (2, 2 / 5), (4, 4 / 5), (6, 1.0)])
def test_each_retry_doubles_the_radius_of_which_a_step_of_several_is_a_fifth(
    steps: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgetkit.methods import boundary_shrink

    lengths: list[float] = []
    from forgetkit.attacks import sign_attack as original

    def watched(start: Tensor, *args: object, **kwargs: object) -> Tensor:
        moved: Tensor = original(start, *args, **kwargs)  # type: ignore[arg-type]  # passed on
        lengths.append(float((moved - start).abs().max()))
        return moved

    monkeypatch.setattr(boundary_shrink, "sign_attack", watched)
    model = Plane()
    model.fc.bias = nn.Parameter(torch.tensor([100.0, 0.0, 0.0]))  # no attack gets away
    points = torch.tensor([[0.1, 0.0], [0.0, -0.1]])
    loader = DataLoader(TensorDataset(points, torch.zeros(2, dtype=torch.long)), batch_size=2)
    method = BoundaryShrink(
        attack_step=0.02, attack_steps=steps, retry=4, bounds=(-1.0, 1.0), epochs=1, lr=0.0
    )
    result = forget(model).classes([0]).using(method).on("cpu").run(loader, guard=None)
    radii = [0.02, 0.04, 0.08, 0.16, 0.32]
    assert lengths == pytest.approx([share * radius for radius in radii], rel=1e-4)
    assert result.history[0]["fallback_labels"] == 2.0


def test_labelling_leaves_the_model_as_it_is() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("boundary_shrink", lr=0.0, epochs=1)
    request.on("cpu").run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize("kind", TOYS)
def test_class_is_forgotten_and_the_rest_kept(kind: str) -> None:
    some = toy(kind)
    kept = some.accuracy(some.test, [0, 1, 2])
    settings = {"lr": 0.01, "batch_size": 16, "check_every": 1}
    request = forget(some.model).classes([3]).using("boundary_shrink", **settings).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert some.accuracy(some.test, [0, 1, 2]) >= kept - 0.1


def test_a_label_that_was_found_stays_when_others_are_looked_for_further_away() -> None:
    seen: list[Tensor] = []

    class Watched(BoundaryShrink):
        def setup(self, run: Run) -> State:
            state = super().setup(run)
            seen.append(state["labels"])
            return state

    model = nn.Linear(1, 3)  # class 1 from 0.55 on, class 2 from 0.65 on
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [10.0], [20.0]]))
        model.bias.copy_(torch.tensor([0.0, -5.5, -12.0]))
    data = TensorDataset(torch.tensor([[0.5], [0.2]]), torch.zeros(2, dtype=torch.long))
    method = Watched(attack_step=0.1, retry=1, bounds=(0.0, 1.0), epochs=1, lr=0.0)
    request = forget(model).classes([0]).using(method).on("cpu")
    request.run(DataLoader(data, batch_size=2), guard=None)
    assert seen[0].tolist() == [1, 1]  # the second one fails: its best other class


def test_white_pixels_of_normalised_images_are_darkened() -> None:
    """White rounds to just above the end of the range in ImageNet's second and third channel."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    white = ((1 - mean) / std).view(1, 3, 1, 1).repeat(2, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    head = model[1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0] = 1.0
        # a tenth of the range darker everywhere class 1 wins, but not in the first channel alone
        head.bias.copy_(torch.tensor([0.0, float(white[0].sum()) - 3.0, -100.0]))
    bounds = tuple((-mean / std).tolist()), tuple(((1 - mean) / std).tolist())
    method = Watched(attack_step=0.1, bounds=bounds, epochs=1, lr=0.0)
    data = TensorDataset(white, torch.zeros(2, dtype=torch.long))
    request = forget(model).classes([0]).using(method).on("cpu")
    result = request.run(DataLoader(data, batch_size=2), guard=None)
    assert result.history[0]["fallback_labels"] == 0.0
    assert Watched.labels["labels"].tolist() == [1, 1]
