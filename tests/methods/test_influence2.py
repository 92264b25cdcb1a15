from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.curvature import sum_of_gradients
from forgetkit.methods import influence2
from forgetkit.second_order import flat, gauss_newton_product, hessian_product
from forgetkit.solvers import Solution, conjugate_gradient
from forgetkit.testing import toy
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


INPUTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7], [2.0, 1.0], [0.1, 0.2]])
LABELS = torch.tensor([0, 1, 2, 0, 1])


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3)


def summed(weight: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(inputs @ weight.view(3, 2).T, labels, reduction="sum")


def newton(
    weight: Tensor, stays: Tensor, new: Tensor, difference: Tensor, damping: float
) -> Tensor:
    """Return the update with the full Hessian; for a linear model it is the Gauss-Newton matrix."""

    def loss(flattened: Tensor) -> Tensor:
        return summed(flattened, INPUTS[stays], new)

    matrix = torch.autograd.functional.hessian(loss, weight.flatten())
    damped = matrix + damping * torch.eye(6)
    step: Tensor = torch.linalg.solve(damped, difference.flatten())
    return weight - step.view(3, 2)


def slope(weight: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    return ((INPUTS[rows] @ weight.T).softmax(dim=1) - torch.eye(3)[labels]).T @ INPUTS[rows]


def test_deletion_equals_a_literal_newton_step() -> None:
    rows, stays = torch.tensor([0, 3]), torch.tensor([1, 2, 4])
    for settings in (
        {"tolerance": 1e-7},
        {"tolerance": 1e-7, "curvature": "hessian"},
        {"solver": "lissa", "scale": 10.0, "tolerance": 1e-7, "iterations": 2000},
    ):
        model = Linear()
        start = model.fc.weight.detach().clone()
        difference = -slope(start, rows, LABELS[rows])
        expected = newton(start, stays, LABELS[stays], difference, 0.5)
        request = forget(model).instances([0, 3]).using("influence2", damping=0.5, **settings)
        result = request.on("cpu").run(loader(), guard=None)
        assert torch.allclose(model.fc.weight, expected, atol=1e-4), settings
        assert any("converged" in note for note in result.notes)


def test_relabelling_counts_the_corrected_samples_among_those_that_stay() -> None:
    model = Linear()
    start = model.fc.weight.detach().clone()
    rows, new = torch.tensor([0, 3]), torch.tensor([1, 2])
    difference = slope(start, rows, new) - slope(start, rows, LABELS[rows])
    labels = LABELS.clone()
    labels[rows] = new
    expected = newton(start, torch.arange(5), labels, difference, 0.5)
    forget(model).relabel({0: 1, 3: 2}).using("influence2", damping=0.5, tolerance=1e-7).on(
        "cpu"
    ).run(loader(), guard=None)
    assert torch.allclose(model.fc.weight, expected, atol=1e-4)


def test_a_sample_of_the_data_is_scaled_to_all() -> None:
    inputs = INPUTS[1:2].repeat(6, 1)  # any subset of equal samples has the same mean
    labels = torch.tensor([0, 1, 1, 1, 1, 1])
    outcomes = []
    for most in (2, None):
        model = Linear()
        request = (
            forget(model).instances([0]).using("influence2", damping=0.5, hessian_samples=most)
        )
        data = DataLoader(TensorDataset(inputs, labels), batch_size=4)
        request.on("cpu").run(data, guard=None)
        outcomes.append(model.fc.weight.detach().clone())
    assert torch.allclose(outcomes[0], outcomes[1], atol=1e-5)


def squared(logits: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean squared error; the labels are the wanted outputs."""
    return 0.5 * (logits[:, 0] - targets).square().mean()


def test_ridge_deletion_is_the_exact_refit() -> None:
    inputs = torch.randn(20, 4, dtype=torch.float64)
    targets = torch.randn(20, dtype=torch.float64)
    penalty = 0.7

    def ridge(rows: slice) -> Tensor:
        own = inputs[rows]
        matrix = own.T @ own + penalty * torch.eye(4, dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(matrix, own.T @ targets[rows])
        return solved

    def logits_of(parameters: Mapping[str, Tensor], given: Inputs) -> Tensor:
        assert isinstance(given, Tensor)
        return (given @ parameters["w"])[:, None]

    def batches(rows: slice) -> list[Batch]:
        own = targets[rows]
        return [Batch(inputs[rows], own, torch.arange(len(own)), len(own))]

    lost, kept, everything = slice(0, 5), slice(5, 20), slice(0, 20)
    fitted = {"w": ridge(everything)}
    gradient = flat(sum_of_gradients(logits_of, fitted, batches(lost), loss=squared))
    for product in (gauss_newton_product, hessian_product):
        for rows, exact in ((kept, True), (everything, False)):
            data = batches(rows)

            def multiplied(
                vector: Tensor, product: object = product, data: list[Batch] = data
            ) -> Tensor:
                if product is hessian_product:
                    return hessian_product(logits_of, fitted, data, vector, loss=squared)
                return gauss_newton_product(logits_of, fitted, data, vector, loss=squared)

            step = conjugate_gradient(multiplied, gradient, damping=penalty, tolerance=1e-14)
            refit = fitted["w"] + step.value
            assert torch.allclose(refit, ridge(kept), atol=1e-10) is exact


@pytest.mark.parametrize(("solver", "published"), [("cg", 100), ("lissa", 10000)])
def test_the_solvers_stop_after_their_own_number_of_products(
    solver: str, published: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def stopped(*_: object, iterations: int, **__: object) -> Solution:
        seen.append(iterations)
        raise KeyboardInterrupt

    name = "conjugate_gradient" if solver == "cg" else "lissa"
    monkeypatch.setattr(influence2, name, stopped)
    some = toy("cnn")
    request = forget(some.model).instances([0, 3]).on("cpu").using("influence2", solver=solver)
    with pytest.raises(KeyboardInterrupt):
        request.run(some.loader())
    assert seen == [published]
