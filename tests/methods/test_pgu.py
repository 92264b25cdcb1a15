from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_digits import learned, shuffled_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import Result, Statistics, core_space, forget
from forgetkit.data.sets import StoredSet
from forgetkit.errors import BadHyperparameter, ModelError
from forgetkit.method import Facts, build
from forgetkit.methods import pgu as pgu_module
from forgetkit.methods.pgu import PATIENCE, PGU
from forgetkit.moment_measuring import Products
from forgetkit.stopping import begin_gap, begin_patience, validation_gap, validation_patience
from forgetkit.testing import TOYS, toy
from forgetkit.testing.toys import Exploding
from forgetkit.testing.trace import changed, weights
from forgetkit.types import SampleSet


class Net(nn.Module):
    """Two linear layers with a ReLU in between."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.one = nn.Linear(6, 8)
        self.two = nn.Linear(8, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.two(self.one(inputs).relu())
        return logits


def data(classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(6, 6, generator=generator) @ torch.diag(torch.arange(6, 0, -1).float())
    return TensorDataset(
        torch.randn(40, 6, generator=generator) @ mixing, torch.arange(40) % classes
    )


def literal_span(rows: Tensor, share: float, spectrum: str) -> Tensor:
    """Return M M^T from the singular vectors of the inputs themselves."""
    _, heights, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    heights = heights**2 if spectrum == "energy" else heights
    rank = 0
    while share > 0 and float(heights[:rank].sum()) < share * float(heights.sum()) - 1e-9:
        rank += 1
    span: Tensor = directions[:rank].T @ directions[:rank]
    return span.float()


def literal_loss(
    logits: Tensor, labels: Tensor, epsilon: float, weight: float, *, others: bool = False
) -> Tensor:
    """Return the loss sample by sample and class by class."""
    total = torch.zeros(())
    for row, label in zip(logits, labels.tolist(), strict=True):
        probabilities = row.softmax(dim=0)
        total = total - torch.log(1 - probabilities[label] + epsilon)
        if others:
            probabilities = torch.cat([row[:label], row[label + 1 :]]).softmax(dim=0)
        entropy = -(probabilities * torch.log(probabilities)).sum()
        total = total + weight * entropy if others else total - weight * entropy
    return total / len(labels)


@pytest.mark.parametrize("spectrum", ["energy", "sigma"])
@pytest.mark.parametrize("share", [0.6, 0.9, {"one": 0.4, "two": 0.9}])
def test_training_is_the_literal_one(share: float | dict[str, float], spectrum: str) -> None:
    model, literal = Net(), Net()
    literal.load_state_dict(model.state_dict())
    inputs, labels = data().tensors
    forget(model).classes([1]).using(
        "pgu", gamma=share, spectrum=spectrum, epochs=3, lr=0.1, last_lr=0.02, batch_size=99,
        entropy_weight=0.3, positions="all", target=0.0,
    ).on("cpu").run(DataLoader(data(), batch_size=7), guard=None)  # fmt: skip

    kept = labels != 1
    with torch.no_grad():
        hidden = literal.one(inputs[kept]).relu()
        one, two = share.values() if isinstance(share, dict) else (share, share)
        spans = {
            "one": literal_span(inputs[kept], one, spectrum),
            "two": literal_span(hidden, two, spectrum),
        }
    for epoch in range(3):
        loss = literal_loss(literal(inputs[~kept]), labels[~kept], 0.05, 0.3)
        literal.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, span in spans.items():
                weight = literal.get_parameter(f"{name}.weight")
                assert weight.grad is not None
                rate = 0.1 * float((0.02 / 0.1) ** (epoch / 3))
                weight.sub_(rate * (weight.grad - weight.grad @ span))
            if not bool((literal(inputs[~kept]).argmax(dim=1) == 1).any()):
                break  # the target of the run
    for (name, ours), theirs in zip(model.named_parameters(), literal.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_without_projection_and_entropy_it_is_plain_descent() -> None:
    model, literal = Net(), Net()
    literal.load_state_dict(model.state_dict())
    inputs, labels = data().tensors
    gone = labels == 1
    forget(model).classes([1]).using(
        "pgu", gamma=0.0, entropy_weight=0.0, epochs=1, lr=0.1, batch_size=99
    ).on("cpu").run(DataLoader(data(), batch_size=7), guard=None)
    literal_loss(literal(inputs[gone]), labels[gone], 0.05, 0.0).backward()
    for (name, ours), theirs in zip(model.named_parameters(), literal.parameters(), strict=True):
        assert theirs.grad is not None
        step = 0.1 * theirs.grad if name.endswith("weight") else torch.zeros_like(theirs)
        assert torch.allclose(ours, theirs - step, atol=1e-6), name


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("extra", [{}, {"weight_decay": 0.01, "optimizer": "adam"}])
def test_everything_protected_changes_nothing(kind: str, extra: dict[str, object]) -> None:
    some = toy(kind)
    before = weights(some.model)
    forget(some.model).classes([3]).using("pgu", gamma=1.0, epochs=2, **extra).on("cpu").run(
        some.loader(), guard=None
    )
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize("kind", TOYS)
def test_a_share_of_one_freezes_the_trust_region_too(kind: str) -> None:
    some = toy(kind)
    before = weights(some.model)
    request = forget(some.model).depoison(range(20)).on("cpu")
    request.using("pgu", gamma=1.0, epochs=2, lr=0.1, trust_rate=10.0).run(
        some.loader(), guard=None
    )
    assert changed(before, weights(some.model)) == []


def test_a_layer_with_a_share_of_one_stays_and_the_others_move() -> None:
    some = toy("cnn")
    before = weights(some.model)
    forget(some.model).classes([3]).using(
        "pgu", gamma={"body": 0.5, "body.4": 1.0, "fc": 0.5}, lr=0.1, epochs=1
    ).on("cpu").run(some.loader(), guard=None)
    assert set(changed(before, weights(some.model))) == {"body.0.weight", "fc.weight"}


def test_each_request_served_before_raises_the_shares(tmp_path: Path) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    statistics = Statistics.collect(some.model, some.loader(), positions="all")
    for _ in range(2):  # images that nobody will ask for again
        statistics = statistics.subtract(some.model, [some.train[:1]])
    statistics.save(file)
    raised: dict[str, float] = {"body": 0.7, "fc": 0.8}

    def left(**settings: object) -> dict[str, Tensor]:
        other = toy("cnn")
        forget(other.model).classes([3]).using(
            "pgu", epochs=2, lr=0.1, positions="all", statistics=file, **settings
        ).on("cpu").run(other.forget_loader(), guard=None)
        return weights(other.model)

    counted = left(gamma={"body": 0.5, "fc": 0.6}, gamma_step=0.1)
    assert changed(counted, left(gamma=raised)) == []
    told = left(gamma={"body": 0.4, "fc": 0.5}, gamma_step=0.1, requests=3)
    assert changed(counted, told) == []
    assert changed(counted, left(gamma={"body": 0.5, "fc": 0.6})) != []
    assert changed(weights(toy("cnn").model), left(gamma=0.5, gamma_step=0.1, requests=5)) == []


class Strided(nn.Module):
    """A convolution that skips places and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2, stride=2, dilation=2, padding=1)
        self.fc = nn.Linear(36, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(images).relu().flatten(1))
        return logits


@pytest.mark.parametrize("dense", [True, False])
def test_patches_are_dense_or_the_layers_own(dense: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(24, 2, 6, 6, generator=generator).cumsum(2).cumsum(3)
    labels = torch.arange(24) % 3
    loader = DataLoader(TensorDataset(images, labels), batch_size=5)
    model, literal = Strided(), Strided()
    literal.load_state_dict(model.state_dict())
    forget(model).classes([2]).using(
        "pgu", gamma=0.9, epochs=1, lr=0.1, batch_size=99, positions="all", dense_patches=dense
    ).on("cpu").run(loader, guard=None)

    kept = labels != 2
    spans = []
    for step in (1, 2):
        patches = functional.unfold(images[kept], 2, padding=1, stride=step, dilation=step)
        spans.append(literal_span(patches.transpose(1, 2).reshape(-1, 8), 0.9, "energy"))
    assert float((spans[0] - spans[1]).norm()) > 0.1
    span = spans[0 if dense else 1]
    literal_loss(literal(images[~kept]), labels[~kept], 0.05, 0.2).backward()
    gradient = literal.conv.weight.grad
    assert gradient is not None
    gradient = gradient.reshape(4, 8)
    step_made = 0.1 * (gradient - gradient @ span)
    assert float(step_made.abs().max()) > 1e-4
    expected = literal.conv.weight - step_made.reshape(4, 2, 2, 2)
    assert torch.allclose(model.conv.weight, expected, atol=1e-6)


def test_statistics_with_other_patches_are_refused(tmp_path: Path) -> None:
    some, file = toy("vit"), tmp_path / "statistics"
    for dense in (True, False):
        Statistics.collect(some.model, some.loader(), dense_patches=dense).save(file)
        before = weights(some.model)
        request = forget(some.model).classes([3]).on("cpu")
        right, wrong = (
            request.using("pgu", statistics=file, dense_patches=asked, epochs=1, lr=0.1)
            for asked in (dense, not dense)
        )
        with pytest.raises(BadHyperparameter, match=f"dense_patches: expected {dense}"):
            wrong.run(some.forget_loader(), guard=None)
        assert changed(before, weights(some.model)) == []
        right.run(some.forget_loader(), guard=None)
        assert changed(before, weights(some.model)) != []


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_on_where_it_is_asked_for_and_only_in_training(dropout: bool) -> None:
    some = toy("cnn")
    seen: set[tuple[str, bool, bool]] = set()

    def note(module: nn.Module, *_: object) -> None:
        if isinstance(module, (nn.Dropout, nn.BatchNorm2d)):
            seen.add((type(module).__name__, torch.is_grad_enabled(), module.training))

    for module in some.model.modules():
        module.register_forward_pre_hook(note)
    forget(some.model).classes([3]).using("pgu", epochs=2, lr=0.1, dropout=dropout).on("cpu").run(
        some.loader(), guard=None
    )
    assert seen == {
        ("Dropout", True, dropout), ("Dropout", False, False),
        ("BatchNorm2d", True, False), ("BatchNorm2d", False, False),
    }  # fmt: skip


def test_a_share_for_no_layer_is_refused_and_nothing_moves() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("pgu", gamma={"default": 0.5, "head": 0.9})
    with pytest.raises(BadHyperparameter, match="'head', which fits none"):
        request.on("cpu").run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.01},
        {"optimizer": "adam", "lr": 0.01},
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    ],
)
def test_retained_inputs_give_what_they_gave(settings: dict[str, object]) -> None:
    some = toy("cnn")
    before = weights(some.model)
    images, labels = some.train.tensors
    patches = nn.functional.unfold(images[labels != 3], 3, padding=1)
    rows = patches.transpose(1, 2).reshape(-1, 9)
    given: dict[str, object] = {
        "gamma": 0.6, "lr": 0.1, "epochs": 4, "positions": "all", "target": 0.0, **settings,
    }  # fmt: skip
    forget(some.model).classes([3]).using("pgu", **given).on("cpu").run(some.loader(), guard=None)
    after = weights(some.model)
    moved = changed(before, after)
    assert set(moved) == {"body.0.weight", "body.4.weight", "fc.weight"}  # no bias, no buffer
    difference = (after["body.0.weight"] - before["body.0.weight"]).reshape(8, 9)
    span = literal_span(rows, 0.6, "energy")
    inside = rows[:200] @ span  # retained inputs, the part within the protected span
    bound = 1e-4 * float(before["body.0.weight"].norm()) * float(inside.norm())
    assert float((difference @ inside.T).norm()) <= bound
    assert float(difference.norm()) > 1e-3


def test_projection_is_what_keeps_the_others() -> None:
    lost = {}
    for gamma in (0.95, 0.0):
        some = toy("cnn")
        kept = some.accuracy(some.test, [0, 1, 2])
        result = (
            forget(some.model)
            .classes([3])
            .using("pgu", gamma=gamma, lr=0.1, batch_size=16, positions="all")
            .on("cpu")
            .run(some.loader(), guard=None)
        )
        assert result.after["forget"].accuracy <= 0.25  # chance
        lost[gamma] = kept - some.accuracy(some.test, [0, 1, 2])
    assert lost[0.95] < 0.05
    assert lost[0.0] > 0.10


@pytest.mark.parametrize("kind", TOYS)
def test_saved_statistics_serve_instead_of_the_retained_data(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "all"
    some = toy(kind)
    Statistics.collect(some.model, some.loader(), positions="all").save(file)
    settings = {"epochs": 2, "lr": 0.1, "positions": "all"}
    assert build("pgu", {"statistics": file}).needs == ("forget",)
    assert build("pgu", {}).needs == ("forget", "retain")
    exploding = DataLoader(Exploding(), batch_size=4)
    forget(some.model).classes([3]).using("pgu", statistics=str(file), **settings).retain(
        exploding
    ).on("cpu").run(some.forget_loader(), guard=None)
    other = toy(kind)
    forget(other.model).classes([3]).using("pgu", **settings).on("cpu").run(
        other.loader(), guard=None
    )
    for (name, ours), theirs in zip(
        some.model.named_parameters(), other.model.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-3), name


def test_four_requests_from_one_file_without_retained_data(tmp_path: Path) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    images, labels = some.train.tensors
    Statistics.collect(some.model, some.loader()).save(file)
    start = file.read_bytes()
    exploding = DataLoader(Exploding(), batch_size=4)
    kept = some.accuracy(some.test, [0, 1, 2])
    for number in range(4):
        rows = (labels == 3).nonzero()[15 * number : 15 * number + 15, 0]
        loader = DataLoader(TensorDataset(images[rows], labels[rows]), batch_size=5)
        result = (
            forget(some.model)
            .instances()
            .using("pgu", statistics=file, epochs=2, lr=0.02, batch_size=5)
            .retain(exploding)
            .on("cpu")
            .run(loader, guard=None)
        )
        missing = [note for note in result.notes if "negative" in note]
        assert all(f"has changed since they were made ({number} served" in n for n in missing)
        assert number > 0 or not missing
        Statistics.load(file).without(result, loader).save(file)
        assert Statistics.load(file).samples == 240 - 15 * (number + 1)
        assert result.after["forget"].loss > result.before["forget"].loss
    assert file.read_bytes() != start
    assert some.accuracy(some.test, [0, 1, 2]) >= kept - 0.05
    rest = DataLoader(TensorDataset(images[labels != 3], labels[labels != 3]), batch_size=60)
    whole, direct = Statistics.load(file), Statistics.collect(some.model, rest)
    first = "body.0.weight"  # what it sees does not depend on the edited weights
    assert torch.allclose(whole.moments.sums[first], direct.moments.sums[first], rtol=1e-6)


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, "no"), (torch.float32, "bf16"), (torch.bfloat16, "no")],
)
def test_what_is_taken_out_was_put_in_whatever_the_precision_of_the_run(
    kind: str, dtype: torch.dtype, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, file = toy(kind), tmp_path / "statistics"
    some.model.to(dtype)
    whole = Statistics.collect(some.model, some.loader(), positions="all")
    rest = whole.subtract(some.model, some.forget_loader()).moments.sums
    seen: dict[str, Tensor] = {}
    known = core_space.protections

    def watched(weights: Any, moments: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401
        seen.update(moments)
        return known(weights, moments, *args, **named)

    monkeypatch.setattr(pgu_module, "protections", watched)
    request = forget(some.model).classes([3]).on("cpu", mixed_precision=precision)
    request = request.using("pgu", epochs=1, statistics=str(whole.save(file)))
    result = request.run(some.forget_loader(), guard=None)
    assert seen.keys() == rest.keys()
    for name, found in seen.items():
        assert torch.allclose(found, rest[name], rtol=0, atol=1e-9 * float(rest[name].max())), name
    assert not any("statistics" in note for note in result.notes)


def test_statistics_of_other_weights_are_noticed(tmp_path: Path) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    whole = Statistics.collect(some.model, some.loader(), positions="all")
    whole.save(file)

    def run(model: nn.Module) -> Result:
        request = forget(model).classes([3]).using("pgu", statistics=file, epochs=1)
        return request.on("cpu").run(some.forget_loader(), guard=None)

    def noticed(result: Result) -> bool:
        return any("measured with other weights" in note for note in result.notes)

    first = run(some.model)
    assert not noticed(first)
    assert noticed(run(copy.deepcopy(some.model)))  # it has forgotten since
    whole.without(first, some.forget_loader()).save(file)
    assert not noticed(run(copy.deepcopy(some.model)))
    whole.subtract(some.model, some.forget_loader()).save(file)  # which weights will come is open
    assert not noticed(run(copy.deepcopy(some.model)))


@pytest.mark.parametrize("goal", ["classes", "depoison"])
def test_layers_with_longer_rows_than_max_dim_stay(goal: str) -> None:
    some = toy("cnn")
    before = weights(some.model)
    widths = {n: p[0].numel() for n, p in some.model.named_parameters() if p.ndim > 1}
    limit = min(widths.values())
    start = forget(some.model)
    request = start.classes([3]) if goal == "classes" else start.depoison(range(40))
    request = request.using("pgu", epochs=2, lr=0.5, gamma=0.5, max_dim=limit).on("cpu")
    result = request.run(some.loader(), guard=None)
    wide = [name for name, width in widths.items() if width > limit]
    assert wide
    assert all(torch.equal(before[name], weights(some.model)[name]) for name in wide)
    assert any(f"pgu: {len(wide)} weights without moments" in note for note in result.notes)
    assert changed(before, weights(some.model))


def test_statistics_of_other_images_are_noticed(tmp_path: Path) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    images, labels = some.train.tensors
    other = [(0.1 * images, labels)]
    Statistics.collect(some.model, other, positions="all").save(file)
    result = (
        forget(some.model)
        .classes([3])
        .using("pgu", statistics=file, epochs=1)
        .on("cpu")
        .run(some.forget_loader(), guard=None)
    )
    assert any("were not made of these images" in note for note in result.notes)


@pytest.mark.parametrize("products", ["double", "single"])
def test_four_images_of_another_kind_are_noticed(tmp_path: Path, products: Products) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    Statistics.collect(some.model, some.loader(), positions="all", products=products).save(file)
    images, labels = (t[:4] for t in some.train.tensors)
    rows, columns = (torch.arange(size) for size in images.shape[-2:])
    other = 9.0 * (-1.0) ** (rows[:, None] + columns).expand(images.shape)
    for given, noticed in ((images, False), (other, True)):
        request = forget(copy.deepcopy(some.model)).instances().on("cpu")
        result = request.using("pgu", statistics=file, epochs=1).run([(given, labels)], guard=None)
        assert any("were not made of these images" in note for note in result.notes) == noticed


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("goal", ["classes", "depoison"])
def test_a_model_whose_biases_alone_may_change_is_refused(
    tmp_path: Path, saved: bool, goal: str
) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    Statistics.collect(some.model, some.loader()).save(file)
    for name, parameter in some.model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    start = forget(some.model)
    request = start.classes([3]) if goal == "classes" else start.depoison(range(5))
    request = request.on("cpu").using("pgu", statistics=file if saved else None)
    with pytest.raises(ModelError, match=r"found none; .*requires_grad_\(True\)"):
        request.run(some.loader())


def test_the_same_pixels_in_another_float_type_are_the_same_image(tmp_path: Path) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    Statistics.collect(some.model, some.loader(), positions=2).save(file)
    images, labels = (t[:60] for t in some.train.tensors)
    request = forget(some.model).instances().using("pgu", statistics=file, epochs=1)
    result = request.on("cpu").run([(images.double(), labels)], guard=None)
    assert not any("statistics" in note for note in result.notes)


def test_wrong_labels_are_left_for_a_decided_other_class() -> None:
    model, literal = Net(4), Net(4)
    literal.load_state_dict(model.state_dict())
    inputs, labels = data(4).tensors
    rows = [1, 5, 8, 22]
    forget(model).depoison(rows).using(
        "pgu", epochs=2, lr=0.2, last_lr=0.05, batch_size=99, gamma=0.9, positions="all",
        trust_dim=2, trust_rate=0.5,
    ).on("cpu").run(DataLoader(data(4), batch_size=7), guard=None)  # fmt: skip

    kept = torch.tensor([row for row in range(40) if row not in rows])
    with torch.no_grad():
        hidden = literal.one(inputs[kept]).relu()
        one, two = (literal_span(inputs[kept], 0.9, "energy"), literal_span(hidden, 0.9, "energy"))
        rank = int(two.trace().round())
        region = torch.linalg.svd(hidden.double())[2][:rank].T.float()[:, -2:]
    scaling = torch.eye(2, requires_grad=True)
    for epoch in range(2):
        weight = literal.two.weight
        outside = torch.eye(8) - region @ region.T
        effective = weight @ outside + weight @ region @ scaling @ region.T
        features = literal.one(inputs[rows]).relu()
        logits = features @ effective.T + literal.two.bias
        loss = literal_loss(logits, labels[rows], 0.1, 3.0, others=True)
        gradients = torch.autograd.grad(loss, [literal.one.weight, weight, scaling])
        rate = 0.2 * (0.05 / 0.2) ** (epoch / 2)
        with torch.no_grad():
            literal.one.weight -= rate * (gradients[0] - gradients[0] @ one)
            weight -= rate * (gradients[1] - gradients[1] @ two)
            scaling -= 0.5 * rate * gradients[2]
    with torch.no_grad():
        weight = literal.two.weight
        folded = weight @ (torch.eye(8) - region @ region.T)
        folded = folded + weight @ region @ scaling @ region.T
    assert torch.allclose(model.two.weight, folded, atol=1e-5)
    assert torch.allclose(model.one.weight, literal.one.weight, atol=1e-5)
    assert float((scaling.detach() - torch.eye(2)).norm()) > 1e-4
    assert type(model.two) is nn.Linear


class Reversed(nn.Module):
    """Layers that are called in another order than that of their names, all as wide as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 4)
        self.classifier = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stem(inputs).relu())
        return logits


def test_the_trust_region_is_that_of_the_head_with_saved_statistics_too(tmp_path: Path) -> None:
    model, file, loader = Reversed(), tmp_path / "statistics", DataLoader(data(4), batch_size=7)
    Statistics.collect(model, loader, positions="all").save(file)
    assert list(Statistics.load(file).moments.sums) == ["stem.weight", "classifier.weight"]
    settings = {"epochs": 3, "lr": 0.2, "gamma": 0.9, "positions": "all", "trust_rate": 5.0}
    found = []
    for given in ({}, {"statistics": file}, {"trust_dim": 1, "trust_rate": 0.0}):
        mine = copy.deepcopy(model)
        request = forget(mine).depoison([1, 5, 8, 22]).on("cpu")
        request.using("pgu", **(settings | given)).run(loader, guard=None)
        found.append(weights(mine))
    measured, saved, still = found
    for name, weight in measured.items():
        assert torch.allclose(weight, saved[name], atol=1e-5), name
    assert not torch.allclose(measured["classifier.weight"], still["classifier.weight"], atol=1e-3)


class Auxiliary(Net):
    """Gives another classifier's logits beside its own, and computes them last."""

    def __init__(self) -> None:
        super().__init__(4)
        self.three = nn.Linear(self.one.out_features, 4)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(inputs)
        return {"logits": logits, "aux_logits": self.three(self.one(inputs))}


def test_the_trust_region_is_that_of_the_last_weight_of_the_logits() -> None:
    found = []
    for rate in (0.0, 5.0):
        torch.manual_seed(0)
        model = Auxiliary()
        before = weights(model)
        settings = {"epochs": 2, "lr": 0.1, "trust_rate": rate}
        request = forget(model).depoison([1, 5, 8]).using("pgu", **settings).on("cpu")
        result = request.run(DataLoader(data(4), batch_size=7), guard=None)
        assert not any("no trust region" in note for note in result.notes)
        assert not {"three.weight", "three.bias"} & set(changed(before, weights(model)))
        found.append(weights(model)["two.weight"])
    assert not torch.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("region", [None, 4])
def test_a_trust_region_trains_at_the_precision_that_was_asked_for(region: int | None) -> None:
    model, types = Net(4), set()

    def note(_: nn.Module, __: object, output: Tensor) -> None:
        if output.requires_grad:
            types.add(output.dtype)

    model.two.register_forward_hook(note)
    request = forget(model).depoison([1, 5, 8]).using("pgu", epochs=1, trust_dim=region)
    request = request.on("cpu", mixed_precision="bf16")
    request.run(DataLoader(data(4), batch_size=7), guard=None)
    assert types == {torch.bfloat16}


def test_a_last_weight_without_a_row_a_class_has_no_trust_region() -> None:
    model, loader = Net(4), DataLoader(data(4), batch_size=7)
    model.two.weight.requires_grad_(False)
    request = forget(model).depoison([1, 5]).using("pgu", epochs=1).on("cpu")
    result = request.run(loader, guard=None)
    assert any("no trust region, because one.weight" in note for note in result.notes)


@pytest.mark.parametrize(("positions", "noted"), [("all", False), (2, True)])
def test_a_run_says_that_moments_are_of_some_rows(
    tmp_path: Path, positions: float | str, noted: bool
) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    Statistics.collect(some.model, some.loader(), positions=positions).save(file)
    request = forget(some.model).classes([3]).on("cpu")
    request = request.using("pgu", preset="paper", statistics=file, epochs=1)
    result = request.run(some.forget_loader(), guard=None)
    assert any("some rows (patches, tokens)" in note for note in result.notes) == noted


def test_depoisoning_keeps_the_epoch_with_the_best_validation() -> None:
    some = toy("cnn")
    validation = DataLoader(some.test, batch_size=60)
    result = (
        forget(some.model)
        .depoison(range(40))
        .using("pgu", epochs=30, lr=0.3, last_lr=0.3, gamma=0.3, batch_size=20)
        .validate(validation)
        .on("cpu")
        .run(some.loader(), guard=None)
    )
    seen = [row["retain_accuracy"] for row in result.history]
    assert result.after["validation_retain"].accuracy == pytest.approx(max(seen))
    assert f"has not risen for {PATIENCE} epochs" in result.stopped_because
    assert len(seen) == seen.index(max(seen)) + PATIENCE + 1


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.net(inputs)
        return logits


def digits() -> tuple[nn.Module, TensorDataset, TensorDataset]:
    """Return a model that has learned 400 digits by heart, those digits, and 600 others."""
    images, labels = shuffled_digits()
    images = images.flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Digits()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(60):
            for rows in torch.randperm(400).split(50):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    return (
        model,
        TensorDataset(images[:400], labels[:400]),
        TensorDataset(images[400:1000], labels[400:1000]),
    )


def forgotten_digits(**settings: object) -> tuple[Result, float, float]:
    """Forget 100 digits; return the result and the accuracy on the others before and after."""
    model, seen, unseen = digits()
    images, labels = seen.tensors

    def others() -> float:
        with torch.no_grad():
            right = model(images[100:]).argmax(dim=1) == labels[100:]
        return float(right.float().mean())

    before = others()
    result = (
        forget(model)
        .instances(range(100))
        .using("pgu", batch_size=20, **settings)
        .validate(DataLoader(unseen, batch_size=200))
        .on("cpu")
        .run(DataLoader(seen, batch_size=100), guard=None)
    )
    return result, before, others()


def test_single_samples_become_like_unseen_ones() -> None:
    result, before, after = forgotten_digits(
        positions="all", spectrum="sigma", gamma=0.9, lr=1.0, last_lr=1.0
    )
    unseen = result.before["validation_retain"].accuracy
    history = [unseen - row["forget_accuracy"] for row in result.history]
    assert history[-1] >= 0
    assert all(gap < 0 for gap in history[:-1])
    start = abs(unseen - result.before["forget"].accuracy)
    later = [
        abs(unseen - row["forget_accuracy"]) + max(unseen - row["retain_accuracy"], 0.0)
        for row in result.history
    ]
    kept = result.after["validation_retain"].accuracy
    distance = abs(unseen - result.after["forget"].accuracy) + max(unseen - kept, 0.0)
    assert distance <= min([start, *later][-2:])
    assert "no better than validation data" in result.stopped_because
    assert after >= before - 0.01


def test_single_samples_without_projection_take_the_others_along() -> None:
    model, seen, _ = digits()
    images, labels = seen.tensors
    request = forget(model).instances(range(100)).using("pgu", gamma=0.0, batch_size=20, epochs=5)
    request.on("cpu").run(DataLoader(seen, batch_size=100), guard=None)
    with torch.no_grad():
        right = (model(images[100:]).argmax(dim=1) == labels[100:]).float().mean()
    assert float(right) < 0.85  # of 1.00


def test_a_ruined_model_is_not_kept_because_both_sets_are_equally_wrong() -> None:
    result, before, after = forgotten_digits(gamma=0.0, lr=0.3)
    row = result.history[-1]
    assert row["retain_accuracy"] < 0.3  # the epoch that closed the gap
    assert abs(row["retain_accuracy"] - row["forget_accuracy"]) < 0.05
    assert after == before
    assert "the weights 0 % of the way" in result.stopped_because


def test_between_two_epochs_the_weights_are_kept_that_are_nearest_to_unseen_samples() -> None:
    result, before, after = forgotten_digits(positions="all", lr=3.0, last_lr=3.0)
    unseen = result.before["validation_retain"].accuracy
    forget = [result.before["forget"].accuracy, *(r["forget_accuracy"] for r in result.history)]
    assert forget[-1] < unseen < forget[-2]
    nearest = min(abs(accuracy - unseen) for accuracy in forget[-2:])
    assert abs(result.after["forget"].accuracy - unseen) < nearest
    assert "0 % of the way" not in result.stopped_because.replace("100 %", "0 %")
    assert after >= before - 0.01


def test_a_class_that_falls_as_a_whole_does_not_move_what_its_samples_are_held_against() -> None:
    def state(own: float, unseen: float) -> SimpleNamespace:
        validation = StoredSet(torch.zeros(8, 1), torch.arange(2).repeat(4))
        return SimpleNamespace(
            validation=validation, forget=StoredSet(torch.zeros(4, 1), torch.zeros(4).long()),
            accuracy=lambda some: unseen if len(some) == 4 else 0.9, forget_accuracy=lambda: own,
            snapshot=lambda: {"w": torch.tensor([own])}, restore=lambda _: None, epoch=0, state={},
        )  # fmt: skip

    run = state(own=1.0, unseen=0.8)
    first = begin_gap(run)  # type: ignore[arg-type]  # what the rule reads
    later = state(own=0.7, unseen=0.6)  # better than unseen samples of now, worse than before
    later.state = first
    assert validation_gap(later) is not None  # type: ignore[arg-type]  # what the rule reads


def test_nothing_is_done_where_nothing_is_left_to_forget() -> None:
    model, _, unseen = digits()
    images, labels = unseen.tensors
    before = weights(model)
    with torch.no_grad():
        wrong = (model(images).argmax(dim=1) != labels).nonzero()[:, 0]
    result = (
        forget(model)
        .instances(wrong.tolist())
        .using("pgu")
        .validate(DataLoader(unseen, batch_size=200))
        .on("cpu")
        .run(DataLoader(unseen, batch_size=100), guard=None)
    )
    assert "nothing was done" in result.stopped_because
    assert changed(before, weights(model)) == []


def test_presets_say_what_was_published() -> None:
    paper = build("pgu", {"preset": "paper"}).hyperparameters()
    assert (paper["spectrum"], paper["gamma"], paper["lr"], paper["last_lr"]) == (
        "sigma", 0.9, 0.05, 0.01,
    )  # fmt: skip
    code = build("pgu", {"preset": "code"}).hyperparameters()
    assert (code["lr"], code["dense_patches"], code["dropout"]) == (0.1, True, True)
    assert (paper["dense_patches"], paper["dropout"]) == (False, False)
    assert (paper["entropy_weight"], paper["epochs"], paper["batch_size"]) == (0.2, 100, 128)


def test_statistics_of_layers_that_are_frozen_by_now_are_left_out(tmp_path: Path) -> None:
    some, file = toy("cnn"), tmp_path / "statistics"
    Statistics.collect(some.model, some.loader(), positions="all").save(file)
    frozen = some.model.get_parameter("body.0.weight").requires_grad_(False)
    before = frozen.clone()
    request = forget(some.model).classes([3]).using("pgu", statistics=file, epochs=1, lr=0.1)
    result = request.on("cpu").run(some.forget_loader(), guard=None)
    assert torch.equal(frozen, before)
    assert result.after["forget"].loss > result.before["forget"].loss


@pytest.mark.parametrize("accuracy", [0.9, 0.8, 0.35])
def test_a_plateau_ends_the_wait_whatever_its_height(accuracy: float) -> None:
    run: Any = SimpleNamespace(
        state={}, validation=object(), accuracy=lambda _: accuracy, snapshot=dict
    )
    run.state = begin_patience(run)
    found = [validation_patience(run, 3) for _ in range(4)]
    assert found[:3] == [None] * 3
    assert found[3] is not None
    assert "not risen for 3 epochs" in found[3]


def test_defaults_that_depend_on_the_goal() -> None:
    facts = Facts("classes", 10, 90, 10, transformer=False)
    for goal, share in (("classes", 0.9), ("instances", 0.95)):
        tuned = PGU().tuned(replace(facts, goal=goal))  # type: ignore[arg-type]  # one of the kinds
        assert (tuned.gamma, tuned.entropy_weight, tuned.epsilon) == (share, 0.2, 0.05)
        assert tuned.trust_dim is None
    cleaning = PGU().tuned(replace(facts, goal="depoison"))
    assert (cleaning.gamma, cleaning.entropy_weight, cleaning.epsilon) == (0.95, 3.0, 0.1)
    assert cleaning.trust_dim == 400


def test_the_gap_is_that_to_unseen_samples_of_the_same_classes() -> None:
    labels = torch.arange(4).repeat(6)
    hard = {0: 0.5, 1: 0.9, 2: 0.9, 3: 0.9}
    validation = StoredSet(torch.zeros(24, 1), labels)

    def accuracy(samples: SampleSet) -> float:
        return sum(hard[label] for label in samples.labels.tolist()) / len(samples)

    for own, gap in ((torch.zeros(5, dtype=torch.int64), 0.5 - 0.7), (labels, 0.8 - 0.7)):
        run = SimpleNamespace(
            validation=validation, forget=StoredSet(torch.zeros(len(own), 1), own),
            accuracy=accuracy, forget_accuracy=lambda: 0.7, snapshot=dict,
        )  # fmt: skip
        state = begin_gap(run)  # type: ignore[arg-type]  # what the rule reads
        assert float(state["gap"]) == pytest.approx(gap)
        assert float(state["kept"]) == pytest.approx(0.8)


@pytest.mark.parametrize("kind", TOYS)
def test_a_class_is_done_at_chance_level(kind: str) -> None:
    some = toy(kind)  # four classes
    request = forget(some.model).classes([3]).on("cpu")
    request = request.using("pgu", lr=0.02, last_lr=0.02, batch_size=16, positions="all")
    result = request.run(some.loader(), guard=None)
    seen = [row["forget_accuracy"] for row in result.history]
    assert "reached its target of 25.00 %" in result.stopped_because
    assert len(seen) > 2
    assert all(accuracy > 0.25 for accuracy in seen[:-1])
    assert 0.0 < seen[-1] <= 0.25
    assert result.after["forget"].accuracy == pytest.approx(seen[-1])


CLEANING: dict[str, object] = {
    "trust_dim": 400, "trust_rate": 0.1, "entropy_weight": 3.0, "epsilon": 0.1, "gamma": 0.95,
    "positions": "all",
}  # fmt: skip


def test_every_default_is_the_published_or_the_measured_one() -> None:
    facts = Facts("classes", 10, 90, 10, transformer=False)
    shared: dict[str, Any] = {
        "spectrum": "energy", "dense_patches": False, "dropout": False, "max_dim": 4608,
        "trust_rate": 0.1, "gamma_step": 0.0, "requests": None, "target": None,
        "statistics": None, "epochs": 100, "lr": 0.05, "last_lr": 0.01, "optimizer": "sgd",
        "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "batch_size": 128,
        "max_norm": None, "mask": None,
    }  # fmt: skip
    forgetting = shared | {
        "entropy_weight": 0.2, "epsilon": 0.05, "trust_dim": None, "positions": "auto",
    }  # fmt: skip
    for goal, own in (
        ("classes", forgetting | {"gamma": 0.9}),
        ("instances", forgetting | {"gamma": 0.95}),
        ("depoison", shared | CLEANING),
    ):
        tuned = PGU().tuned(replace(facts, goal=goal))  # type: ignore[arg-type]  # one of the kinds
        found = tuned.hyperparameters()
        assert {name: found[name] for name in own} == own, goal


def test_the_preset_to_depoison_is_the_authors_code() -> None:
    preset = build("pgu", {"preset": "depoison"})
    published: dict[str, Any] = {
        "spectrum": "sigma", "gamma": 0.95, "lr": 0.1, "last_lr": 0.05, "positions": "all",
        "entropy_weight": 0.2, "max_dim": 1000000,
    }  # fmt: skip
    assert preset == PGU(**published)
    facts = Facts("depoison", 10, 90, 10, transformer=False)
    assert preset.tuned(facts) == PGU(**(published | {"epsilon": 0.1, "trust_dim": 400}))


class Wide(nn.Module):
    """A head of 500 inputs and a body that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.fc = nn.Linear(500, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(inputs))
        return logits


def test_the_defaults_to_depoison_are_those_of_the_run() -> None:
    draws = torch.Generator().manual_seed(3)
    kept = torch.diag(torch.linspace(2.0, 1.9, 500))  # 0.95 of its energy are 470 directions
    loader = DataLoader(
        TensorDataset(
            torch.cat([kept, torch.randn(8, 500, generator=draws)]), torch.arange(508) % 4
        ),
        batch_size=508,
    )
    model = Wide()

    def left(**settings: Any) -> Tensor:  # noqa: ANN401
        mine = copy.deepcopy(model)
        request = forget(mine).depoison(range(500, 508)).on("cpu")
        request = request.using("pgu", epochs=2, lr=0.5, batch_size=4, **settings)
        request.run(loader, guard=None)
        return mine.fc.weight.detach()

    found = left()
    assert torch.equal(found, left(**CLEANING))
    for name, other in (
        ("trust_dim", 399), ("trust_rate", 0.11), ("entropy_weight", 2.9), ("epsilon", 0.11),
        ("gamma", 0.94),
    ):  # fmt: skip
        assert not torch.equal(found, left(**(CLEANING | {name: other}))), name


def test_the_moments_of_a_small_retain_set_are_of_all_its_rows() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("pgu", epochs=1).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert not any("some rows" in note for note in result.notes)


@pytest.mark.parametrize(("lacking", "noted"), [(0.0009, False), (0.0011, True)])
def test_a_thousandth_of_what_was_taken_out_may_not_have_been_in(
    tmp_path: Path, lacking: float, noted: bool
) -> None:
    """However little that is of the whole: few samples of many are noticed like many."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(60, 6)
    inputs[:50, :3] = 10 * torch.randn(50, 3, generator=generator)
    inputs[50:, 3:] = torch.randn(10, 3, generator=generator)
    seen, labels = inputs.clone(), torch.arange(60) % 3
    seen[50:] *= (1 - lacking) ** 0.5
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 3))
    file = str(Statistics.collect(model, [(seen, labels)]).save(tmp_path / "statistics"))
    request = forget(model).instances().using("pgu", statistics=file, epochs=1).on("cpu")
    result = request.run([(inputs[50:], labels[50:])], guard=None)
    assert any("were not made of these images" in note for note in result.notes) == noted


@pytest.mark.parametrize("gamma", [None, 0.0])
def test_the_default_step_size_closes_the_gap_and_projection_is_what_keeps_the_others(
    gamma: float | None,
) -> None:
    images, labels = shuffled_digits()
    model = learned(images[:500], labels[:500], seed=0, epochs=20, batch_size=50)

    def others() -> float:
        with torch.no_grad():
            right = model(images[100:500]).argmax(dim=1) == labels[100:500]
        return float(right.double().mean())

    before = others()
    request = forget(model).instances(range(100)).on("cpu")
    loader = DataLoader(TensorDataset(images[:500], labels[:500]), batch_size=100)
    if gamma is None:
        unseen = DataLoader(TensorDataset(images[1300:], labels[1300:]), batch_size=200)
        request = request.using("pgu", batch_size=20).validate(unseen)
        result = request.run(loader, guard=None)
        assert "no better than validation data" in result.stopped_because
        assert result.after["forget"].accuracy < 1.0 == result.before["forget"].accuracy
        assert others() >= before - 0.01
    else:
        request.using("pgu", batch_size=20, gamma=gamma, epochs=10).run(loader, guard=None)
        assert others() < before - 0.1
