from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.curvature import sum_of_gradients
from forgetkit.influence import correction
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Batch, Inputs


class Linear(nn.Module):
    """Two inputs, three classes, nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs)
        return logits


INPUTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7], [2.0, 1.0]])
LABELS = torch.tensor([0, 1, 2, 0])


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3)


def slope(weight: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the summed cross-entropy of a linear model, written out."""
    return ((inputs @ weight.T).softmax(dim=1) - torch.eye(3)[labels]).T @ inputs


def test_deletion_climbs_the_summed_loss() -> None:
    model = Linear()
    start = model.fc.weight.detach().clone()
    forget(model).instances([0, 3]).using("influence1", step_size=0.1).on("cpu").run(
        loader(), guard=None
    )
    rows = torch.tensor([0, 3])
    expected = start + 0.1 * slope(start, INPUTS[rows], LABELS[rows])
    assert torch.allclose(model.fc.weight, expected, atol=1e-6)


def test_relabelling_exchanges_the_gradients() -> None:
    model = Linear()
    start = model.fc.weight.detach().clone()
    forget(model).relabel({0: 1, 3: 2}).using("influence1", step_size=0.1).on("cpu").run(
        loader(), guard=None
    )
    rows, new = torch.tensor([0, 3]), torch.tensor([1, 2])
    difference = slope(start, INPUTS[rows], new) - slope(start, INPUTS[rows], LABELS[rows])
    assert torch.allclose(model.fc.weight, start - 0.1 * difference, atol=1e-6)


def test_further_steps_take_the_predictions_as_old_labels() -> None:
    model = Linear()
    weight = model.fc.weight.detach().clone()
    forget(model).relabel({0: 1, 3: 2}).using("influence1", step_size=0.2, repeats=4).on("cpu").run(
        loader(), guard=None
    )
    rows, new = torch.tensor([0, 3]), torch.tensor([1, 2])
    old = LABELS[rows]
    for _ in range(4):
        difference = slope(weight, INPUTS[rows], new) - slope(weight, INPUTS[rows], old)
        weight = weight - 0.2 * difference
        old = (INPUTS[rows] @ weight.T).argmax(dim=1)
    assert torch.allclose(model.fc.weight, weight, atol=1e-5)


def test_deletion_repeats_with_the_own_labels() -> None:
    model = Linear()
    weight = model.fc.weight.detach().clone()
    forget(model).depoison([1]).using("influence1", step_size=0.2, repeats=3).on("cpu").run(
        loader(), guard=None
    )
    for _ in range(3):
        weight = weight + 0.2 * slope(weight, INPUTS[1:2], LABELS[1:2])
    assert torch.allclose(model.fc.weight, weight, atol=1e-5)


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("which", ["head", "linear"])
def test_parametrised_weights_move_as_others_do(wrap: str, which: str) -> None:
    torch.manual_seed(0)
    head = getattr(nn.utils.parametrizations, wrap)(nn.Linear(6, 3, bias=False))
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), head)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    request = forget(model).instances([0, 3]).using("influence1", step_size=0.1, layers=which)
    request.on("cpu").run(loader(), guard=None)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    own = {name for name in before if name.startswith("2.parametrizations.weight.")}
    assert own
    assert moved == (own if which == "head" else before.keys())


def test_same_labels_make_no_change() -> None:
    model = Linear()

    def logits_of(parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, dict(parameters), (inputs,))
        return logits

    batches = [Batch(INPUTS, LABELS, torch.arange(4), 4)]
    found = correction(
        logits_of, dict(model.named_parameters()), batches, old=LABELS, new=LABELS.clone()
    )
    assert float(found.abs().max()) == 0.0


@pytest.mark.parametrize(("factor", "falls"), [(0.5, True), (1.9, True), (2.1, False)])
def test_steps_below_two_over_the_top_curvature_help(
    factor: float, falls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a quadratic, the step lowers the corrected loss exactly when tau < 2 / top."""
    inputs, targets = torch.randn(30, 1), torch.tensor([[2.0, -1.0], [-1.0, 3.0]])
    old = torch.arange(30) % 2
    new = 1 - old

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * (logits - targets[labels]).square().sum(dim=1).mean()

    squared = partial(sum_of_gradients, loss=loss)
    monkeypatch.setattr("forgetkit.influence.sum_of_gradients", squared)
    head = nn.Linear(1, 2, bias=False)
    model = nn.Sequential(head)
    top = float(inputs.square().sum())
    with torch.no_grad():  # fitted to the old labels, which then have no gradient
        head.weight.copy_((inputs * targets[old]).sum(dim=0)[:, None] / top)
        before = float(loss(model(inputs), new))
    request = forget(model).relabel(dict(enumerate(new.tolist()))).on("cpu")
    request = request.using("influence1", step_size=factor / top)
    request.run(DataLoader(TensorDataset(inputs, old), batch_size=7), guard=None)
    with torch.no_grad():
        assert (float(loss(model(inputs), new)) < before) is falls


def test_only_the_chosen_layers_move() -> None:
    some = toy("vit")
    before = weights(some.model)
    expected = {
        "head": {"head.weight", "head.bias"},
        "linear": {
            f"{layer}.{kind}"
            for layer in ("block.linear1", "block.linear2", "head")
            for kind in ("weight", "bias")
        },
    }
    for layers, names in expected.items():
        again = toy("vit")
        request = forget(again.model).instances(range(5)).on("cpu")
        result = request.using("influence1", layers=layers, step_size=0.1).run(
            again.loader(), guard=None
        )
        assert set(changed(before, weights(again.model))) == names
        assert any("head.weight" in note for note in result.notes)
    cnn = toy("cnn")
    before = weights(cnn.model)
    forget(cnn.model).classes([3]).using("influence1", step_size=0.1).on("cpu").run(
        cnn.loader(), guard=None
    )
    assert set(changed(before, weights(cnn.model))) == {"fc.weight", "fc.bias"}


class Embedding(nn.Module):
    """Gives a projection beside its logits, which it computes last."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 6)
        self.fc = nn.Linear(6, 3)
        self.project = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(inputs).relu()
        return {"logits": self.fc(hidden), "embedding": self.project(hidden)}


@pytest.mark.parametrize(("layers", "moving"), [("head", {"fc"}), ("linear", {"fc", "hidden"})])
def test_the_head_is_the_last_layer_of_the_logits(layers: str, moving: set[str]) -> None:
    model = Embedding()
    before = weights(model)
    request = forget(model).instances([0, 3]).using("influence1", step_size=0.1, layers=layers)
    request.on("cpu").run(loader(), guard=None)
    assert {name.split(".")[0] for name in changed(before, weights(model))} == moving


def test_deleted_samples_lose_likelihood() -> None:
    some = toy("cnn")
    result = (
        forget(some.model)
        .classes([3])
        .using("influence1", step_size=0.1)
        .on("cpu")
        .run(some.forget_loader(), guard=None)
    )
    assert result.after["forget"].loss > 2 * result.before["forget"].loss
    images, labels = some.test.tensors
    model = some.model.eval()
    with torch.no_grad():
        own = functional.cross_entropy(model(images[labels == 3]), labels[labels == 3])
        kept = functional.cross_entropy(model(images[labels != 3]), labels[labels != 3])
    assert float(own) > 10 * float(kept)
