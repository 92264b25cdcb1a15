from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.curvature import (
    batch_squared_gradients,
    fisher_diagonal,
    mean_absolute_gradients,
    mean_squared_gradients,
    squared_norm,
    sum_of_gradients,
)
from forgetkit.errors import DataError, ModelError
from forgetkit.losses import cross_entropy
from forgetkit.per_sample import LogitsOf, SampleLoss, per_sample_gradients
from forgetkit.testing import toy
from forgetkit.types import Batch, Inputs

Named = Mapping[str, Tensor]


def as_function(model: nn.Module) -> tuple[LogitsOf, dict[str, Tensor]]:
    twin = model.eval()

    def logits_of(parameters: Named, inputs: Inputs) -> Tensor:
        if isinstance(inputs, Tensor):
            logits: Tensor = torch.func.functional_call(twin, dict(parameters), (inputs,))
        else:
            logits = torch.func.functional_call(twin, dict(parameters), (), dict(inputs))
        return logits

    return logits_of, dict(twin.named_parameters())


def batched(inputs: Inputs, labels: Tensor, size: int) -> list[Batch]:
    found = []
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        some = (
            inputs[rows] if isinstance(inputs, Tensor) else {n: v[rows] for n, v in inputs.items()}
        )
        count = len(labels[rows])
        found.append(Batch(some, labels[rows], torch.arange(start, start + count), count))
    return found


def literal(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: SampleLoss,
    of: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the mean over samples of a function of the gradient, by plain loops."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        loss(model(image[None]), label[None]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            total[name] += of(parameter.grad) / len(images)
    model.zero_grad(set_to_none=True)
    return total


def assert_equal(left: Named, right: Named, atol: float = 1e-6, rtol: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.allclose(left[name], right[name], atol=atol, rtol=rtol), name


def few(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    some = toy(kind)
    images, labels = some.train.tensors
    rows = torch.arange(0, len(labels), 14)
    return some.model.eval(), images[rows], labels[rows]


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_squares_equal_a_plain_loop(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, images, labels = few(kind)
    expected = literal(model, images, labels, cross_entropy, torch.square)
    logits_of, parameters = as_function(model)
    with caplog.at_level(logging.WARNING, "forgetkit"):
        found = mean_squared_gradients(logits_of, parameters, batched(images, labels, 7))
    assert not caplog.records
    assert_equal(found, expected)
    assert all(bool(value.any()) for value in found.values())


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_absolute_values_equal_a_plain_loop_and_ignore_labels(kind: str) -> None:
    model, images, labels = few(kind)
    expected = literal(model, images, labels, squared_norm, torch.abs)
    logits_of, parameters = as_function(model)
    found = mean_absolute_gradients(logits_of, parameters, batched(images, labels, 7))
    assert_equal(found, expected, atol=1e-4)
    other = mean_absolute_gradients(logits_of, parameters, batched(images, labels.flip(0), 7))
    assert_equal(found, other, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_per_sample_form_does_not_depend_on_batches_or_memory(size: int) -> None:
    model, images, labels = few("cnn")
    logits_of, parameters = as_function(model)
    reference = mean_squared_gradients(logits_of, parameters, batched(images, labels, 18))
    for memory in (1, 40_000, 2**30):
        found = mean_squared_gradients(
            logits_of, parameters, batched(images, labels, size), memory=memory
        )
        assert_equal(found, reference, atol=1e-8)


def test_memory_bounds_the_chunk() -> None:
    model, images, labels = few("cnn")
    logits_of, parameters = as_function(model)
    size = 4 * sum(p.numel() for p in parameters.values())
    chunks = per_sample_gradients(
        logits_of, parameters, batched(images, labels, 18), memory=5 * 2 * size
    )
    assert [len(chunk["fc.bias"]) for chunk in chunks] == [5, 5, 5, 3]


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_fisher_equals_a_loop_over_labels(kind: str) -> None:
    model, images, labels = few(kind)
    logits_of, parameters = as_function(model)
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    probs = model(images).softmax(dim=1).detach()
    for image, own in zip(images, probs, strict=True):
        for label, prob in enumerate(own):
            one = literal(model, image[None], torch.tensor([label]), cross_entropy, torch.square)
            for name, value in one.items():
                expected[name] += prob * value / len(images)
    found = fisher_diagonal(logits_of, parameters, batched(images, labels, 5), classes=4)
    assert_equal(found, expected)


def test_fisher_of_a_softmax_bias_is_p_times_one_minus_p() -> None:
    model = nn.Linear(1, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    logits_of, parameters = as_function(model)
    data = batched(torch.ones(1, 1), torch.tensor([0]), 1)
    found = fisher_diagonal(logits_of, parameters, data, classes=3)
    assert torch.allclose(found["bias"], torch.tensor([0.21, 0.16, 0.09]), atol=1e-6)
    assert torch.allclose(found["weight"][:, 0], torch.tensor([0.21, 0.16, 0.09]), atol=1e-6)


def test_sampled_fisher_is_unbiased() -> None:
    model = nn.Linear(1, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    logits_of, parameters = as_function(model)
    data = batched(torch.ones(1000, 1), torch.zeros(1000, dtype=torch.long), 250)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    found = fisher_diagonal(logits_of, parameters, data, classes=3, draws=draws)
    assert torch.allclose(found["bias"], torch.tensor([0.21, 0.16, 0.09]), atol=1e-4)


def test_batch_form_squares_the_mean_and_the_sum_keeps_signs() -> None:
    model, images, labels = few("cnn")
    logits_of, parameters = as_function(model)
    data = batched(images, labels, 9)
    means = []
    for batch in data:
        loss = functional.cross_entropy(logits_of(parameters, batch.inputs), batch.labels)
        means.append(torch.autograd.grad(loss, list(parameters.values())))
    squares = batch_squared_gradients(logits_of, parameters, data)
    sums = sum_of_gradients(logits_of, parameters, data)
    for row, name in enumerate(parameters):
        first, second = means[0][row], means[1][row]
        assert torch.allclose(squares[name], (first**2 + second**2) / 2, atol=1e-8)
        assert torch.allclose(sums[name], 9 * (first + second), atol=1e-5)
    assert_equal(
        sums, sum_of_gradients(logits_of, parameters, batched(images, labels, 5)), atol=1e-4
    )
    single = mean_squared_gradients(logits_of, parameters, data)
    lone = batch_squared_gradients(logits_of, parameters, batched(images, labels, 1))
    assert_equal(single, lone, atol=1e-8)


def test_labels_by_index_replace_those_of_the_batch() -> None:
    model, images, labels = few("cnn")
    logits_of, parameters = as_function(model)
    other = (labels + 1) % 4
    for statistic in (mean_squared_gradients, batch_squared_gradients, sum_of_gradients):
        found = statistic(logits_of, parameters, batched(images, labels, 7), labels=other)
        expected = statistic(logits_of, parameters, batched(images, other, 7))
        assert_equal(found, expected, atol=0.0, rtol=0.0)


class DataDependent(nn.Module):
    """Reads a number off a tensor, which torch.func cannot batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        return logits * 2 if float(images.sum().detach()) > 0 else logits


class OwnDerivative(torch.autograd.Function):
    """A function of the old style, which torch.func refuses."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        return values * 3

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient * 3


class OldStyle(DataDependent):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        tripled: Tensor = OwnDerivative.apply(logits)
        return tripled


@pytest.mark.parametrize("kind", [DataDependent, OldStyle])
def test_models_that_cannot_be_batched_go_one_by_one_with_a_warning(
    kind: type[DataDependent], caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = few("cnn")[1:]
    model = kind()
    logits_of, parameters = as_function(model)
    with caplog.at_level(logging.WARNING, "forgetkit"):
        found = mean_squared_gradients(logits_of, parameters, batched(images, labels, 7))
    assert len(caplog.records) == 1
    assert "one by one" in caplog.text
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for image, label in zip(images, labels, strict=True):
        loss = functional.cross_entropy(model(image[None]), label[None])
        weight, bias = torch.autograd.grad(loss, [model.fc.weight, model.fc.bias])
        expected["fc.weight"] += weight**2 / len(images)
        expected["fc.bias"] += bias**2 / len(images)
    assert_equal(found, expected)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_batched_equals_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = few(kind)
    logits_of, parameters = as_function(model)
    fast = mean_squared_gradients(logits_of, parameters, batched(images, labels, 7))
    monkeypatch.setattr("forgetkit.per_sample._vmapped", lambda *_: None)
    slow = mean_squared_gradients(logits_of, parameters, batched(images, labels, 7))
    assert_equal(fast, slow)


def test_errors_of_the_model_are_not_swallowed() -> None:
    def broken(parameters: Named, inputs: Inputs) -> Tensor:
        raise RuntimeError("out of order")

    images, labels = few("cnn")[1:]
    with pytest.raises(RuntimeError, match="out of order"):
        mean_squared_gradients(broken, {"w": torch.ones(1)}, batched(images, labels, 7))


def test_named_inputs_are_batched_too() -> None:
    class Named2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def forward(self, pixel_values: Tensor, scale: Tensor) -> Tensor:
            logits: Tensor = self.fc(pixel_values.flatten(1) * scale[:, None])
            return logits

    images, labels = few("cnn")[1:]
    logits_of, parameters = as_function(Named2())
    scale = torch.linspace(0.5, 2.0, len(labels))
    named = batched({"pixel_values": images, "scale": scale}, labels, 7)
    found = mean_squared_gradients(logits_of, parameters, named)
    alone = Named2()
    alone.load_state_dict(parameters)
    plain = as_function(nn.Sequential(nn.Flatten(), alone.fc))
    scaled = batched(images * scale[:, None, None, None], labels, 7)
    expected = mean_squared_gradients(plain[0], plain[1], scaled)
    assert torch.allclose(found["fc.weight"], expected["1.weight"], atol=1e-6)


def test_transformers_attention_is_batched(caplog: pytest.LogCaptureFixture) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_channels=1, num_labels=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.ViTForImageClassification._from_config(
        config, attn_implementation="sdpa"
    ).eval()
    images, labels = few("vit")[1:]

    def logits_of(parameters: Named, inputs: Inputs) -> Tensor:
        output = torch.func.functional_call(model, dict(parameters), (), {"pixel_values": inputs})
        logits: Tensor = output.logits
        return logits

    parameters = dict(model.named_parameters())
    with caplog.at_level(logging.WARNING, "forgetkit"):
        fast = mean_squared_gradients(logits_of, parameters, batched(images, labels, 9))
    assert not caplog.records
    slow: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for image, label in zip(images, labels, strict=True):
        loss = functional.cross_entropy(model(image[None]).logits, label[None])
        for name, value in zip(
            parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            slow[name] += value**2 / len(images)
    assert_equal(fast, slow)


def test_empty_input_is_refused() -> None:
    model, images, labels = few("cnn")
    logits_of, parameters = as_function(model)
    with pytest.raises(DataError, match="empty set"):
        mean_squared_gradients(logits_of, parameters, [])
    with pytest.raises(ModelError, match="trainable"):
        sum_of_gradients(logits_of, {}, batched(images, labels, 7))
