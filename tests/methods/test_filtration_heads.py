"""Linear filtration of heads with something behind the last layer, or of many classes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.errors import ModelError
from forgetkit.methods.linear_filtration import filtration_matrix
from forgetkit.testing.trace import changed, weights

CLASSES = 5
KEPT = [0, 1, 3, 4]


class Tailed(nn.Module):
    """Two layers that are added up, and something behind them."""

    def __init__(self, tail: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.one, self.two = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.tail = tail
        self.register_buffer("ends", torch.tensor([0.5, -1.0, 2.0, 1.5, 0.25]))

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        logits: Tensor = (self.one(features) + self.two(features)) / 2
        ends = self.get_buffer("ends")
        return {
            "mean": lambda: logits,
            "temperature": lambda: logits / 0.3,
            "shift": lambda: logits + ends,
            "scale": lambda: logits * ends.abs(),
            "centred": lambda: logits - logits.mean(dim=1, keepdim=True),
            "negative": lambda: -logits,
        }[self.tail]()


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % CLASSES
    centres = torch.randn(CLASSES, 6, generator=generator)
    return TensorDataset(centres[labels] + torch.randn(60, 6, generator=generator) / 2, labels)


def class_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean logits, (logits, true classes)."""
    rows = [logits[labels == label].double().mean(dim=0) for label in range(CLASSES)]
    return torch.stack(rows, dim=1)


def run(model: nn.Module, form: str) -> None:
    request = forget(model).classes([2]).using("linear_filtration", form=form).on("cpu")
    request.run(DataLoader(samples(), batch_size=20), guard=None)


@pytest.mark.parametrize("tail", ["mean", "temperature"])
@pytest.mark.parametrize("form", ["normalization", "zeroing"])
def test_a_common_factor_behind_the_head_is_no_obstacle(tail: str, form: str) -> None:
    model = Tailed(tail)
    images, labels = samples().tensors
    before = model(images).detach()
    matrix = filtration_matrix(class_means(before, labels), (2,), form, torch.empty(4, 1))
    run(model, form)
    after = model(images).detach()
    assert torch.allclose(after[:, KEPT], before @ matrix.float().T, atol=1e-4)
    assert not (after.argmax(dim=1) == 2).any()


@pytest.mark.parametrize("tail", ["shift", "scale", "centred", "negative"])
def test_logits_that_the_head_shifts_or_scales_by_class_are_refused(tail: str) -> None:
    model = Tailed(tail)
    before = weights(model)
    with pytest.raises(ModelError, match=r"behind one\+two \(.*\) changes them by class; fold it"):
        run(model, "zeroing")
    assert changed(before, weights(model)) == []


@pytest.mark.parametrize("tail", ["shift", "scale", "centred"])
def test_a_class_is_masked_whatever_shifts_or_scales_its_logit(tail: str) -> None:
    model = Tailed(tail)
    images, _ = samples().tensors
    before = model(images).detach()
    run(model, "naive")
    after = model(images).detach()
    assert torch.equal(after[:, KEPT].argmax(dim=1), before[:, KEPT].argmax(dim=1))
    assert float(after.softmax(dim=1)[:, 2].max()) == 0.0


def test_a_mask_that_would_raise_the_class_is_refused() -> None:
    model = Tailed("negative")
    before = weights(model)
    with pytest.raises(ModelError, match="a bias to raise the logit of its class, found that"):
        run(model, "naive")
    assert changed(before, weights(model)) == []


@pytest.mark.parametrize("form", ["normalization", "zeroing", "randomization"])
def test_rounding_is_not_inverted_where_there_are_more_classes_than_features(form: str) -> None:
    """Means of K logits out of d features have rank d + 1, but for the rounding of float32."""
    classes, features = 60, 8
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, features, generator=generator)
    labels = torch.arange(classes).repeat_interleave(10)
    images = centres[labels] + torch.randn(len(labels), features, generator=generator) / 4
    head = nn.Linear(features, classes)
    with torch.no_grad():
        head.weight.copy_(8 * centres)
        head.bias.copy_(-4 * centres.square().sum(dim=1))
    model = nn.Sequential(head)
    before = copy.deepcopy(model)
    request = forget(model).classes([3]).using("linear_filtration", form=form).on("cpu")
    request.run(DataLoader(TensorDataset(images, labels), batch_size=200), guard=None)
    kept = torch.arange(classes) != 3
    now, then = weights(model)["0.weight"], weights(before)["0.weight"]
    assert float(now.abs().max()) < 20 * float(then.abs().max())
    rows = labels != 3
    agree = model(images[rows])[:, kept].argmax(1) == before(images[rows])[:, kept].argmax(1)
    assert float(agree.float().mean()) > 0.97
