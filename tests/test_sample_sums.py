"""Sums of single gradients told from one pass of a batch equal those made one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.curvature import (
    fisher_diagonal,
    mean_absolute_gradients,
    mean_squared_gradients,
    squared_norm,
)
from forgetkit.losses import cross_entropy
from forgetkit.parameter_uses import OfLinear
from forgetkit.per_sample import BySample, LogitsOf, Parameters, SampleLoss
from forgetkit.types import Batch, Inputs

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.GroupNorm(3, 6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 12, 2, padding="same"), nn.Conv2d(12, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 40, 3, dilation=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 3),
    )  # fmt: skip


def dilated() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=(2, 1), dilation=2, padding_mode="reflect"), nn.Tanh(),
        nn.Conv2d(4, 64, 3, stride=(2, 1)), nn.Tanh(), nn.Conv2d(64, 64, 2, groups=4, stride=2),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


class Tokens(nn.Module):
    """Adds, multiplies and expands parameters, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(14, 6)
        self.first = nn.Parameter(torch.randn(1, 1, 6))
        self.places = nn.Parameter(torch.randn(1, 8, 6))
        self.layer_scale = nn.Parameter(torch.rand(6))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.norm = nn.LayerNorm(6)
        self.windows = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.flatten(1).unflatten(1, (-1, 14)))
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], dim=1) + self.places
        cut = tokens.unflatten(1, (4, 2)).flatten(0, 1)  # four windows a sample
        tokens = tokens + self.layer_scale * self.windows(cut).unflatten(0, (-1, 4)).flatten(1, 2)
        logits: Tensor = self.head(self.norm(tokens).mean(dim=1)) * self.temperature
        return logits


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(98, 98)
        self.head = nn.Linear(98, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.inner(images.flatten(1)).tanh()))
        return logits


class WithUnused(Tied):
    """Has a parameter that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(5))


class Hidden(Tied):
    """Uses a weight in one way that is seen, and in one that is not."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(images.flatten(1)).tanh() @ self.inner.weight)
        return logits


class Keywords(nn.Module):
    """Calls operations in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.rand(98)), nn.Parameter(torch.rand(1, 98))
        self.head = nn.Linear(98, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = torch.mul(input=images.flatten(1), other=self.gain)
        rows = torch.add(rows, self.shift.expand(size=(len(images), 98)), alpha=2)
        logits: Tensor = functional.linear(weight=self.head.weight, input=rows, bias=self.head.bias)
        return logits


class Attention(nn.Module):
    """Goes through torch's own attention, which calls none of its projections."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(14, 2, batch_first=True)
        self.inner = nn.Linear(98, 98)
        self.head = nn.Linear(98, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1).unflatten(1, (-1, 14))
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)
        logits: Tensor = self.head(self.inner(mixed))
        return logits


class LengthFirst(nn.Module):
    """Puts the samples on the second axis, where a linear layer reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(14, 14)
        self.head = nn.Linear(14, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1).unflatten(1, (-1, 14))[:, :6].transpose(0, 1)
        logits: Tensor = self.head(self.inner(tokens).mean(dim=0))
        return logits


class Mixing(Tied):
    """Compares every sample with the others of its batch."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        logits: Tensor = self.head(self.inner(rows - rows.mean(dim=0) / 2).tanh())
        return logits


class Padded(Tied):
    """Fills the batch up to a multiple of eight rows, and cuts the logits."""

    def forward(self, images: Tensor) -> Tensor:
        rows = functional.pad(images.flatten(1), (0, 0, 0, -len(images) % 8))
        logits: Tensor = self.head(self.inner(rows).tanh())[: len(images)]
        return logits


class Faint(nn.Module):
    """Adds next to nothing of a layer that reads the samples along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(14, 14)
        self.head = nn.Linear(14, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1).unflatten(1, (-1, 14))
        length = len(images) * (6 // len(images)) if len(images) < 6 else len(images)
        tokens = tokens.repeat(1, 2, 1)[:, :length].transpose(0, 1)
        logits: Tensor = self.head((tokens + 1e-10 * self.inner(tokens).tanh()).mean(dim=0))
        return logits


class Gated(Tied):
    """Uses a weight in a way that is not seen, for some samples only."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        gate = torch.relu(rows[:, :1] - 0.5)
        logits: Tensor = self.head(self.inner(rows) + gate * (rows @ self.inner.weight))
        return logits


class Empty(Tied):
    """Has a parameter without entries."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.zeros(1, 0, 98))

    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat(
            [images.flatten(1)[:, None], self.registers.expand(len(images), -1, -1)], dim=1
        )
        logits: Tensor = self.head(self.inner(tokens.sum(dim=1)))
        return logits


TOLD: list[Callable[[], nn.Module]] = [convolutions, dilated, Tokens, Tied, WithUnused, Empty]
LEFT: list[Callable[[], nn.Module]] = [
    Hidden, Keywords, Attention, LengthFirst, Mixing, Padded, Faint, Gated,
]  # fmt: skip


def problem(
    make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64
) -> tuple[LogitsOf, Parameters, Tensor, Tensor]:
    model = make().to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, dtype=dtype)
            module.running_var = torch.rand(module.num_features, dtype=dtype) + 0.5
    images, labels = torch.randn(12, 2, 7, 7, dtype=dtype), torch.arange(12) % 3

    def logits_of(parameters: Parameters, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        found: Tensor = torch.func.functional_call(model, dict(parameters), (inputs,))
        return found

    return logits_of, dict(model.named_parameters()), images, labels


def batches(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    index = torch.arange(len(labels))
    pieces = zip(images.split(size), labels.split(size), index.split(size), strict=True)
    return [Batch(x, y, i, len(y)) for x, y, i in pieces]


def alone(
    logits_of: LogitsOf, parameters: Parameters, images: Tensor, labels: Tensor, loss: SampleLoss
) -> list[dict[str, Tensor]]:
    """Return the gradients of one sample after the other."""
    found = []
    for row in range(len(labels)):
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        value = loss(logits_of(leaves, images[row : row + 1]), labels[row : row + 1])
        own = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        found.append(dict(zip(leaves, own, strict=True)))
    return found


def refuse_single_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("single gradients were made")

    monkeypatch.setattr(BySample, "of", refuse)


@pytest.mark.parametrize("size", [1, 5, 12])
@pytest.mark.parametrize("make", TOLD)
def test_a_pass_of_the_batch_tells_all(
    make: Callable[[], nn.Module], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_of, parameters, images, labels = problem(make)
    refuse_single_gradients(monkeypatch)
    data = batches(images, labels, size)
    squares = mean_squared_gradients(logits_of, parameters, data)
    sizes = mean_absolute_gradients(logits_of, parameters, data)
    by_loss = alone(logits_of, parameters, images, labels, cross_entropy)
    by_norm = alone(logits_of, parameters, images, labels, squared_norm)
    for name in parameters:
        expected = torch.stack([own[name] for own in by_loss]).square().mean(dim=0)
        assert torch.allclose(squares[name], expected, rtol=1e-9, atol=1e-14), name
        expected = torch.stack([own[name] for own in by_norm]).abs().mean(dim=0)
        assert torch.allclose(sizes[name], expected, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("size", [1, 5, 8, 12])
@pytest.mark.parametrize("make", LEFT)
def test_what_it_cannot_tell_is_made_sample_by_sample(
    make: Callable[[], nn.Module], size: int
) -> None:
    logits_of, parameters, images, labels = problem(make)
    found = mean_squared_gradients(logits_of, parameters, batches(images, labels, size))
    single = alone(logits_of, parameters, images, labels, cross_entropy)
    for name in parameters:
        expected = torch.stack([own[name] for own in single]).square().mean(dim=0)
        slack = 1e-12 * float(expected.max())
        assert torch.allclose(found[name], expected, rtol=1e-9, atol=slack), name


@pytest.mark.parametrize("make", [convolutions, Tokens, Attention])
def test_some_parameters_are_enough(make: Callable[[], nn.Module]) -> None:
    logits_of, parameters, images, labels = problem(make)
    data = batches(images, labels, 5)
    every = mean_squared_gradients(logits_of, parameters, data)
    some = dict(list(parameters.items())[1::2])

    def partly(given: Parameters, inputs: Inputs) -> Tensor:
        return logits_of({**parameters, **given}, inputs)

    found = mean_squared_gradients(partly, some, data)
    assert found.keys() == some.keys()
    for name, value in found.items():
        assert torch.allclose(value, every[name], rtol=1e-9, atol=1e-14), name


def test_losses_share_the_way_forward() -> None:
    logits_of, parameters, images, labels = problem(convolutions)
    calls = []

    def counted(given: Parameters, inputs: Inputs) -> Tensor:
        calls.append(len(inputs))
        return logits_of(given, inputs)

    found = fisher_diagonal(counted, parameters, batches(images, labels, 6), classes=3)
    assert calls.count(6) == 2  # one for each batch, whatever the number of classes
    with torch.no_grad():
        chances = logits_of(parameters, images).softmax(dim=1)
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for label in range(3):
        every = torch.full_like(labels, label)
        for row, own in enumerate(
            alone(logits_of, parameters, images, every, functional.cross_entropy)
        ):
            for name, gradient in own.items():
                expected[name] += chances[row, label] * gradient.square() / len(labels)
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-9), name


def test_half_precision_is_summed_in_single() -> None:
    logits_of, parameters, images, labels = problem(Tokens, torch.float32)
    exact = mean_squared_gradients(logits_of, parameters, batches(images, labels, 6))
    torch.manual_seed(0)
    logits_of, parameters, _, _ = problem(Tokens, torch.float32)
    halves = {name: p.detach().bfloat16() for name, p in parameters.items()}

    def in_half(given: Parameters, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return logits_of(given, inputs.bfloat16())

    torch.manual_seed(0)
    found = mean_squared_gradients(in_half, halves, batches(images, labels, 6))
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert (value - exact[name]).abs().max() <= 0.1 * exact[name].abs().max(), name


def test_memory_bounds_what_is_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_of, parameters, images, labels = problem(Tied)
    refuse_single_gradients(monkeypatch)
    data = batches(images, labels, 12)
    whole = mean_squared_gradients(logits_of, parameters, data)
    counts = []
    each = OfLinear.each

    def counted(self: OfLinear, rows: slice, kind: torch.dtype) -> Tensor:
        found = each(self, rows, kind)
        counts.append(len(found))
        return found

    monkeypatch.setattr(OfLinear, "each", counted)
    cut = mean_squared_gradients(logits_of, parameters, data, memory=8 * 98 * 98 * 3)
    assert max(counts) == 3
    for name, value in whole.items():
        assert torch.allclose(value, cut[name], rtol=1e-12), name


def test_nothing_is_left_on_the_way() -> None:
    logits_of, parameters, images, labels = problem(Tokens)
    with torch.no_grad():
        found = mean_squared_gradients(logits_of, parameters, batches(images, labels, 5))
        assert not torch.is_grad_enabled()
    assert not any(value.requires_grad for value in found.values())
    assert all(p.grad is None for p in parameters.values())


class Patched(nn.Module):
    """Makes tokens of what batch normalisation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(2, 5, 3, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.cut(images)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(tokens.tanh().mean(dim=1))
        return logits


def test_a_last_batch_of_one_image_counts_like_the_others() -> None:
    logits_of, parameters, images, labels = problem(Patched)
    images, labels = images[:9], labels[:9]
    one = mean_squared_gradients(logits_of, parameters, batches(images, labels, 9))
    two = mean_squared_gradients(logits_of, parameters, batches(images, labels, 8))
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-9, atol=1e-14), name


def test_logits_that_depend_on_no_parameter_and_empty_batches() -> None:
    logits_of, parameters, images, labels = problem(WithUnused)

    def partly(given: Parameters, inputs: Inputs) -> Tensor:
        return logits_of({**{n: p.detach() for n, p in parameters.items()}, **given}, inputs)

    idle = {"idle": parameters["idle"]}
    found = mean_squared_gradients(partly, idle, batches(images, labels, 5))
    assert found["idle"].tolist() == [0.0] * 5
    data = batches(images, labels, 5)
    empty = Batch(images[:0], labels[:0], torch.arange(0), 0)
    with_empty = mean_squared_gradients(logits_of, parameters, [data[0], empty, *data[1:]])
    for name, value in mean_squared_gradients(logits_of, parameters, data).items():
        assert torch.equal(with_empty[name], value)


def test_inference_mode_outside_makes_no_difference() -> None:
    logits_of, parameters, images, labels = problem(Tokens)
    expected = mean_squared_gradients(logits_of, parameters, batches(images, labels, 5))
    with torch.inference_mode():
        made_inside = batches(images.clone(), labels.clone(), 5)
        found = mean_squared_gradients(logits_of, parameters, made_inside)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-14), name
