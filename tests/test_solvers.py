from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forgetkit.errors import UnlearningFailed
from forgetkit.solvers import conjugate_gradient, lissa


def positive(size: int, least: float = 0.1) -> Tensor:
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.T / size + least * torch.eye(size, dtype=torch.float64)


def test_conjugate_gradient_solves_the_damped_system() -> None:
    matrix = positive(12)
    right = torch.randn(12, dtype=torch.float64)
    found = conjugate_gradient(
        lambda v: matrix @ v, right, damping=0.3, tolerance=1e-12, iterations=50
    )
    expected = torch.linalg.solve(matrix + 0.3 * torch.eye(12, dtype=torch.float64), right)
    assert found.converged
    assert torch.allclose(found.value, expected, atol=1e-10)
    left = matrix @ found.value + 0.3 * found.value - right
    assert float(left.norm() / right.norm()) < 1e-10


def test_conjugate_gradient_stops_at_its_limits() -> None:
    matrix = positive(30, 1e-3)
    right = torch.randn(30, dtype=torch.float64)
    short = conjugate_gradient(lambda v: matrix @ v, right, tolerance=1e-12, iterations=3)
    assert not short.converged
    assert short.steps == 3
    assert "stopped after 3" in str(short)
    loose = conjugate_gradient(lambda v: matrix @ v, right, tolerance=0.5, iterations=99)
    assert loose.converged
    assert loose.steps < 30
    nothing = conjugate_gradient(lambda v: matrix @ v, 0 * right)
    assert nothing.steps == 0
    assert float(nothing.value.abs().max()) == 0.0


def test_conjugate_gradient_solves_for_matrices_of_unknowns() -> None:
    matrix = positive(6)
    right = torch.randn(6, 4, dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, right, tolerance=1e-12, iterations=60)
    assert torch.allclose(found.value, torch.linalg.solve(matrix, right), atol=1e-9)


def test_conjugate_gradient_refuses_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([1.0, -1.0]))
    with pytest.raises(UnlearningFailed, match="raise the damping"):
        conjugate_gradient(lambda v: matrix @ v, torch.tensor([0.1, 1.0]))
    fine = conjugate_gradient(lambda v: matrix @ v, torch.tensor([0.1, 1.0]), damping=2.0)
    assert torch.allclose(fine.value, torch.tensor([0.1 / 3, 1.0]), atol=1e-5)


def test_lissa_ends_at_the_damped_answer() -> None:
    found = lissa(
        lambda v: v, torch.ones(1, dtype=torch.float64), decay=0.1, scale=2.0, tolerance=1e-12
    )
    assert float(found.value) == pytest.approx(0.833333, abs=1e-6)
    assert found.converged


def test_lissa_equals_its_literal_recursion_and_conjugate_gradient() -> None:
    matrix = positive(8)
    right = torch.randn(8, dtype=torch.float64)
    scale, decay = 10.0, 0.02
    found = lissa(
        lambda v: matrix @ v, right, decay=decay, scale=scale, tolerance=0.0, iterations=15
    )
    slow = right.clone()
    for _ in range(15):
        slow = right + (1 - decay) * slow - (matrix @ slow) / scale
    assert torch.allclose(found.value, slow / scale, atol=1e-12)
    full = lissa(lambda v: matrix @ v, right, decay=decay, scale=scale, tolerance=1e-9)
    exact = conjugate_gradient(lambda v: matrix @ v, right, damping=decay * scale, tolerance=1e-10)
    assert torch.allclose(full.value, exact.value, atol=1e-3 * float(exact.value.norm()))


def test_lissa_says_when_it_diverges() -> None:
    with pytest.raises(UnlearningFailed, match="raise its scale"):
        lissa(lambda v: 5.0 * v, torch.ones(3), decay=0.0, scale=1.0)


@pytest.mark.parametrize("found", [torch.inf, torch.nan])
def test_lissa_refuses_what_is_not_finite_in_its_only_step(found: float) -> None:
    with pytest.raises(UnlearningFailed, match=f"found a change of {found} in step 1 after"):
        lissa(lambda v: v + found, torch.ones(3), decay=0.0, scale=1.0, iterations=1)


def test_lissa_stops_without_progress() -> None:
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # no change gets smaller: I - H is a turn
    found = lissa(lambda v: v - quarter @ v, torch.ones(2), decay=0.0, scale=1.0, iterations=500)
    assert not found.converged
    assert found.steps < 50


def test_lissa_waits_twenty_steps_for_progress() -> None:
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # the first change stays the smallest
    found = lissa(lambda v: v - quarter @ v, torch.ones(2), decay=0.0, scale=1.0, iterations=500)
    assert found.steps == 21


def test_the_residual_is_relative_to_the_right_side() -> None:
    diagonal = torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    right = 1e-6 * torch.ones(4, dtype=torch.float64)
    found = conjugate_gradient(lambda v: diagonal * v, right, tolerance=1e-2)
    assert found.steps == 4
    left = float((right - diagonal * found.value).norm() / right.norm())
    assert found.residual == pytest.approx(left, abs=1e-9)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_as_many_products_are_made_as_were_asked_for(most: int) -> None:
    diagonal = torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    calls: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        calls.append(vector)
        return diagonal * vector

    right = torch.ones(4, dtype=torch.float64)
    found = conjugate_gradient(product, right, tolerance=1e-12, iterations=most)
    assert (len(calls), found.steps, found.converged) == (most, most, False)


def test_conjugate_gradient_refuses_no_curvature() -> None:
    with pytest.raises(UnlearningFailed, match="positive curvature"):
        conjugate_gradient(lambda v: 0.0 * v, torch.ones(3))
