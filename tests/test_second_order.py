from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.per_sample import LogitsOf, Parameters
from forgetkit.second_order import (
    flat,
    gauss_newton_product,
    hessian_product,
    jacobian,
    pull_back,
    push_forward,
    shaped,
)
from forgetkit.testing import toy
from forgetkit.types import Batch, Inputs


class Small(nn.Module):
    """A smooth network of few weights, one of them unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.unused = nn.Parameter(torch.ones(2))
        self.last = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.first(inputs)))
        return logits


def as_function(model: nn.Module) -> tuple[LogitsOf, dict[str, Tensor]]:
    def logits_of(parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, dict(parameters), (inputs,))
        return logits

    return logits_of, {name: p.detach() for name, p in model.eval().named_parameters()}


def small() -> tuple[LogitsOf, dict[str, Tensor], list[Batch], Tensor, Tensor]:
    logits_of, parameters = as_function(Small().double())
    inputs, labels = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 1])
    batches = [
        Batch(inputs[rows], labels[rows], rows, len(rows)) for rows in torch.arange(7).split(3)
    ]
    return logits_of, parameters, batches, inputs, labels


def test_hessian_product_equals_the_full_hessian() -> None:
    logits_of, parameters, batches, inputs, labels = small()

    def total(weights: Tensor) -> Tensor:
        logits = logits_of(shaped(weights, parameters), inputs)
        return functional.cross_entropy(logits, labels, reduction="sum")

    matrix = torch.autograd.functional.hessian(total, flat(parameters))
    vector = torch.randn(len(matrix), dtype=torch.float64)
    found = hessian_product(logits_of, parameters, batches, vector)
    assert torch.allclose(found, matrix @ vector, atol=1e-10)


def test_gauss_newton_product_equals_the_full_matrix() -> None:
    logits_of, parameters, batches, inputs, _ = small()

    def logits(weights: Tensor) -> Tensor:
        return logits_of(shaped(weights, parameters), inputs)

    rows = torch.autograd.functional.jacobian(logits, flat(parameters))
    probs = logits(flat(parameters)).softmax(dim=1)
    matrix = torch.zeros(rows.shape[2], rows.shape[2], dtype=torch.float64)
    for row, own in zip(rows, probs, strict=True):
        matrix += row.T @ (torch.diag(own) - torch.outer(own, own)) @ row
    vector = torch.randn(len(matrix), dtype=torch.float64)
    found = gauss_newton_product(logits_of, parameters, batches, vector)
    assert torch.allclose(found, matrix @ vector, atol=1e-10)
    assert float(vector @ found) >= 0.0


def test_jacobian_products_equal_the_full_jacobian() -> None:
    logits_of, parameters, batches, inputs, _ = small()
    expected = torch.autograd.functional.jacobian(
        lambda weights: logits_of(shaped(weights, parameters), inputs), flat(parameters)
    )
    full = torch.cat(list(jacobian(logits_of, parameters, batches, classes=3)))
    assert torch.allclose(full, expected.flatten(0, 1), atol=1e-12)
    vector = torch.randn(full.shape[1], dtype=torch.float64)
    pushed = push_forward(logits_of, parameters, batches, vector)
    assert torch.allclose(pushed.flatten(), full @ vector, atol=1e-12)
    cotangents = torch.randn(7, 3, dtype=torch.float64)
    pulled = pull_back(logits_of, parameters, batches, cotangents)
    assert torch.allclose(pulled, full.T @ cotangents.flatten(), atol=1e-12)


@pytest.mark.parametrize("columns", [(0, 4), (3, 9), (5, 6), (0, 10**6), (7, 10**6)])
def test_some_columns_are_those_of_the_whole_jacobian(columns: tuple[int, int]) -> None:
    logits_of, parameters, batches, _, _ = small()
    read: list[set[str]] = []

    def watched(weights: Parameters, inputs: Inputs) -> Tensor:
        read.append({name for name, tensor in weights.items() if tensor.requires_grad})
        return logits_of(weights, inputs)

    whole = torch.cat(list(jacobian(logits_of, parameters, batches, classes=3)))
    stop = min(columns[1], whole.shape[1])
    some = jacobian(watched, parameters, batches, classes=3, columns=(columns[0], stop))
    assert torch.equal(torch.cat(list(some)), whole[:, columns[0] : stop])
    ends = torch.tensor([tensor.numel() for tensor in parameters.values()]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    touched = {
        name
        for name, start, end in zip(parameters, starts, ends, strict=True)
        if start < stop and end > columns[0]
    }
    assert read
    assert all(names == touched for names in read)


def test_a_scalar_is_a_column_of_the_jacobian() -> None:
    def logits_of(weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return weights["temperature"] * inputs @ weights["matrix"]

    parameters = {"temperature": torch.tensor(1.5), "matrix": torch.ones(2, 2)}
    one = Batch(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), torch.tensor([0]), 1)
    found = torch.cat(list(jacobian(logits_of, parameters, [one], classes=2)))
    assert found.tolist() == [[7.0, 4.5, 0.0, 6.0, 0.0], [7.0, 0.0, 4.5, 0.0, 6.0]]


def test_what_is_cut_off_is_not_kept() -> None:
    logits_of, parameters, batches, _, _ = small()
    for rows in jacobian(logits_of, parameters, batches, classes=3, columns=(3, 5)):
        assert rows.untyped_storage().nbytes() == rows.numel() * rows.element_size()


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_products_are_linear_symmetric_and_agree_on_real_layers(kind: str) -> None:
    some = toy(kind)
    images, labels = (part[::20].to(torch.float64 if part.ndim > 1 else part.dtype)
                      for part in some.train.tensors)  # fmt: skip
    logits_of, parameters = as_function(some.model.double())
    batches = [Batch(images, labels, torch.arange(len(labels)), len(labels))]
    left, right = torch.randn(2, flat(parameters).numel(), dtype=torch.float64)
    for product in (hessian_product, gauss_newton_product):
        a = product(logits_of, parameters, batches, left)
        b = product(logits_of, parameters, batches, right)
        assert float(right @ a) == pytest.approx(float(left @ b), rel=1e-6)
    pushed = push_forward(logits_of, parameters, batches, left)
    with torch.no_grad():
        at = logits_of(parameters, images)
        step = 1e-6
        moved = {n: p + step * shaped(left, parameters)[n] for n, p in parameters.items()}
        slope = (logits_of(moved, images) - at) / step
    assert torch.allclose(pushed, slope, atol=2e-3 * float(slope.abs().max()))
    cotangents = torch.randn_like(pushed)
    pulled = pull_back(logits_of, parameters, batches, cotangents)
    assert float(pulled @ left) == pytest.approx(float((cotangents * pushed).sum()), rel=1e-8)


def test_a_linear_loss_has_no_curvature() -> None:
    logits_of, parameters, batches, _, _ = small()
    vector = torch.ones_like(flat(parameters))
    found = gauss_newton_product(
        logits_of, parameters, batches, vector, loss=lambda logits, labels: logits.sum()
    )
    assert float(found.abs().max()) == 0.0


def test_products_leave_gradients_and_modes_alone() -> None:
    logits_of, parameters, batches, _, _ = small()
    vector = torch.ones_like(flat(parameters))
    with torch.no_grad():
        for product in (hessian_product, gauss_newton_product, push_forward):
            assert not product(logits_of, parameters, batches, vector).requires_grad
        assert not torch.is_grad_enabled()
    assert all(not p.requires_grad and p.grad is None for p in parameters.values())
    assert torch.backends.mha.get_fastpath_enabled()


def test_shaping_a_flat_vector_and_back_changes_nothing() -> None:
    parameters = small()[1]
    vector = torch.randn(flat(parameters).numel(), dtype=torch.float64)
    assert torch.equal(flat(shaped(vector, parameters)), vector)
