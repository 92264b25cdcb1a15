from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.method import find
from forgetkit.methods.svd_projection import FORGET_SCALES, RETAIN_SCALES
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import changed, weights


class Net(nn.Module):
    """A strided convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2, stride=2)
        self.one = nn.Linear(12, 5)
        self.two = nn.Linear(5, 3)

    def inputs_of(self, images: Tensor) -> dict[str, Tensor]:
        """Return the rows that each layer multiplies, (rows, width)."""
        patches = nn.functional.unfold(images, 2, stride=2).transpose(1, 2).reshape(-1, 8)
        features = self.conv(images).relu().flatten(1)
        return {"conv": patches, "one": features, "two": self.one(features).relu()}

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.two(self.inputs_of(images)["two"])
        return logits


def data() -> TensorDataset:
    labels = torch.arange(60) % 3
    patterns = 2 * torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(60, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    return TensorDataset(patterns[labels] + noise, labels)


def trained() -> Net:
    """Return a network that knows the data."""
    model, (images, labels) = Net(), data().tensors
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def literal_edit(
    model: Net, images: Tensor, gone: Tensor, scales: tuple[float, float], *, sequential: bool
) -> None:
    """Replace every weight by W P^T, with singular value decompositions of all rows."""
    with torch.no_grad():
        sets = [model.inputs_of(images[~gone]), model.inputs_of(images[gone])]
        for name in sets[0]:
            if sequential:  # what the layer sees behind those that are edited already
                sets = [model.inputs_of(images[~gone]), model.inputs_of(images[gone])]
            spans = []
            for inputs, scale in zip(sets, scales, strict=True):
                directions, heights, _ = torch.linalg.svd(inputs[name].double().T)
                share = torch.zeros(len(directions), dtype=torch.float64)
                share[: len(heights)] = heights**2 / (heights**2).sum()
                factor = scale * share / ((scale - 1) * share + 1)
                spans.append(directions @ torch.diag(factor) @ directions.T)
            kept, lost = spans
            matrix = torch.eye(len(kept), dtype=torch.float64) - (lost - lost @ kept)
            weight = model.get_parameter(f"{name}.weight")
            flat = weight.double().reshape(len(weight), -1) @ matrix.T
            weight.copy_(flat.reshape(weight.shape))


@pytest.mark.parametrize("sequential", [False, True])
def test_the_edit_is_the_literal_one(sequential: bool) -> None:
    model, literal = trained(), Net()
    literal.load_state_dict(model.state_dict())
    images, labels = data().tensors
    literal_edit(literal, images, labels == 2, (100.0, 30.0), sequential=sequential)
    result = (
        forget(model)
        .classes([2])
        .using("svd_projection", retain_scale=100.0, forget_scale=30.0, sequential=sequential)
        .on("cpu")
        .run(DataLoader(data(), batch_size=7), guard=None)
    )
    assert "retain_scale=100, forget_scale=30" in result.notes[-1]
    for (name, ours), theirs in zip(model.named_parameters(), literal.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_one_after_the_other_measures_behind_the_edited_layers() -> None:
    outcomes = []
    model = trained()
    for sequential in (False, True):
        edited = Net()
        edited.load_state_dict(model.state_dict())
        forget(edited).classes([2]).using(
            "svd_projection", retain_scale=100.0, forget_scale=30.0, sequential=sequential
        ).on("cpu").run(DataLoader(data(), batch_size=7), guard=None)
        outcomes.append(weights(edited))
    # nothing before the first layer is edited, so it is measured on the same inputs
    assert changed(*outcomes) == ["one.weight", "two.weight"]


def test_a_pair_of_scales_starts_from_the_model_as_it_came_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, outcomes = trained(), []
    for tried in ([0.5, 30.0], [30.0]):
        monkeypatch.setattr("forgetkit.methods.svd_projection.FORGET_SCALES", tuple(tried))
        edited = Net()
        edited.load_state_dict(model.state_dict())
        result = (
            forget(edited)
            .classes([2])
            .using("svd_projection", retain_scale=100.0, sequential=True)
            .on("cpu")
            .run(DataLoader(data(), batch_size=7), guard=None)
        )
        assert "retain_scale=100, forget_scale=30" in result.notes[-1]
        outcomes.append(weights(edited))
    assert changed(*outcomes) == []


@pytest.mark.slow
def test_the_grid_keeps_the_best_pair_of_scales() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    result = (
        forget(some.model)
        .classes([3])
        .using("svd_projection")
        .on("cpu")
        .run(some.loader(), guard=None)
    )

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            right = (model.eval()(images).argmax(dim=1) == labels).float()
        return float(right[labels != 3].mean() * (1 - right[labels == 3].mean()))

    best = score(some.model)
    for retain_scale, forget_scale in ((1.0, 1.0), (30.0, 3.0), (100.0, 3.0), (1000.0, 1000.0)):
        assert retain_scale in RETAIN_SCALES
        assert forget_scale in FORGET_SCALES
        other = toy("cnn")
        forget(other.model).classes([3]).using(
            "svd_projection", retain_scale=retain_scale, forget_scale=forget_scale
        ).on("cpu").run(other.loader(), guard=None)
        assert score(other.model) <= best + 1e-6
    assert result.after["forget"].accuracy <= 0.1
    assert "retain_scale=" in result.notes[-1]


def test_the_best_product_of_what_is_kept_and_what_is_forgotten_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Pairs of accuracies on D_r and D_f: of the model as it came in, then of each pair of scales.
    measured = iter([1.0, 1.0, 0.5, 0.6, 0.3, 0.2, 0.95, 0.8])  # products 0, 0.2, 0.24, 0.19
    monkeypatch.setattr(Run, "accuracy", lambda run, samples: next(measured))
    monkeypatch.setattr("forgetkit.methods.svd_projection.FORGET_SCALES", (2.0, 3.0, 4.0))
    some = toy("cnn")
    result = (
        forget(some.model)
        .classes([3])
        .using("svd_projection", retain_scale=100.0, samples_per_class=8)
        .on("cpu")
        .run(some.loader(), guard=None)
    )
    assert "retain_scale=100, forget_scale=3" in result.notes[-1]
    assert next(measured, None) is None


def test_the_model_as_it_came_in_is_a_candidate() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    confused = labels.clone()
    confused[labels == 0], confused[labels == 3] = 3, 0  # forgotten already: all are wrong
    before = weights(some.model)
    kept = (labels == 1) | (labels == 2) | (labels == 0)
    loader = DataLoader(TensorDataset(images[kept], confused[kept]), batch_size=32)
    result = (
        forget(some.model).classes([3]).using("svd_projection", retain_scale=1e9, forget_scale=1e9)
        .on("cpu").run(loader, guard=None)
    )  # fmt: skip
    assert changed(before, weights(some.model)) == []
    assert "no pair of scales did better" in result.notes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
def test_only_weights_of_layers_move_and_no_gradient_is_needed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a gradient was asked for")

    some = toy(kind)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    before = weights(some.model)
    with torch.inference_mode():
        forget(some.model).classes([3]).using("svd_projection").on("cpu").run(
            some.loader(), guard=None
        )
    moved = changed(before, weights(some.model))
    assert moved
    assert all(name.endswith("weight") and before[name].ndim > 1 for name in moved)


def test_few_samples_are_enough_and_the_rest_is_not_read() -> None:
    images, labels = toy("cnn").train.tensors
    outcomes = []
    for wiped in (False, True):
        some, data = toy("cnn"), images.clone()
        if wiped:  # of each class only the first 8, and 24 of the forgotten one, count
            for label in range(4):
                data[(labels == label).nonzero()[24 if label == 3 else 8 :, 0]] = 0.0
        forget(some.model).classes([3]).using("svd_projection", samples_per_class=8).on("cpu").run(
            DataLoader(TensorDataset(data, labels), batch_size=32), guard=None
        )
        outcomes.append(weights(some.model))
    assert changed(*outcomes) == []


@pytest.mark.parametrize(("gone", "each"), [([3], 24), ([2, 3], 8), ([1, 2, 3], 2)])
def test_forgotten_classes_share_as_many_samples_as_all_retained_ones_have(
    gone: list[int], each: int
) -> None:
    images, labels = toy("cnn").train.tensors
    outcomes = [weights(toy("cnn").model)]
    for read in (60, each, each - 1):
        some, data = toy("cnn"), images.clone()
        for label in gone:
            data[(labels == label).nonzero()[read:, 0]] = 0.0
        request = forget(some.model).classes(gone).on("cpu").using(
            "svd_projection", samples_per_class=8, retain_scale=300.0, forget_scale=30.0
        )  # fmt: skip
        request.run(DataLoader(TensorDataset(data, labels), batch_size=32), guard=None)
        outcomes.append(weights(some.model))
    start, everything, enough, too_few = outcomes
    assert changed(start, enough) != []
    assert changed(everything, enough) == []
    assert changed(enough, too_few) != []


@pytest.mark.parametrize(("classes", "each"), [(4, 300), (10, 100), (40, 23), (1200, 1)])
def test_nine_hundred_samples_are_shared_by_the_retained_classes(classes: int, each: int) -> None:
    labels = torch.arange(classes).repeat(1 + 1400 // classes)
    model = nn.Sequential(nn.Linear(3, classes))
    loader = DataLoader(TensorDataset(torch.randn(len(labels), 3), labels), batch_size=512)
    request = forget(model).classes([0]).on("cpu")
    result = request.using("svd_projection", retain_scale=1.0, forget_scale=1.0).run(
        loader, guard=None
    )
    kept = min(each, 1 + 1400 // classes) * (classes - 1)
    own = min(kept, 1 + 1400 // classes)
    expected = f"1 layers, 1 pairs of scales, {kept} retained and {own} forget samples"
    assert any(expected in note for note in result.notes)


def test_the_grids_are_the_published_ones() -> None:
    assert RETAIN_SCALES == (1, 3, 10, 30, 100, 300, 1000)
    assert FORGET_SCALES == (0.25, 0.5, 1, 3, 10, 30, 100, 300, 1000)


def test_it_serves_classes_only() -> None:
    assert find("svd_projection").card.goals == ("classes",)


def test_a_layer_that_is_too_wide_stays_and_a_note_says_so() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).on("cpu")
    request = request.using("svd_projection", max_dim=30, retain_scale=30.0, forget_scale=3.0)
    result = request.run(some.loader(), guard=None)
    wide = [name for name, p in before.items() if p.ndim == 4 and p[0].numel() > 30]
    assert wide
    assert any(f"{len(wide)} layers have rows longer than max_dim=30" in n for n in result.notes)
    assert changed(before, weights(some.model)) == [
        name for name, p in before.items() if p.ndim > 1 and name not in wide
    ]
