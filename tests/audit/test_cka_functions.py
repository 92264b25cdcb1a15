"""Linear CKA: pinned values, invariances, and the kernel form written out."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from forgetkit.auditing.cka import LinearCKA, linear_cka
from forgetkit.errors import DataError

X = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
Y = torch.tensor([[1.0, 0], [0, 2], [1, 2], [0, 0]])
TURN = torch.tensor([[0.0, -1], [1, 0]])


def drawn(rows: int, columns: int, seed: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def hsic(k: Tensor, m: Tensor, *, unbiased: bool) -> float:
    n = len(k)
    if not unbiased:
        centre = torch.eye(n, dtype=torch.float64) - 1 / n
        return float(torch.trace(k @ centre @ m @ centre))
    k, m = k - torch.diag(k.diag()), m - torch.diag(m.diag())
    ones = torch.ones(n, dtype=torch.float64)
    parts = (
        torch.trace(k @ m)
        + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        - 2 * (ones @ k @ m @ ones) / (n - 2)
    )
    return float(parts / (n * (n - 3)))


def literal(x: Tensor, y: Tensor, *, unbiased: bool) -> float:
    k, m = x @ x.T, y @ y.T
    cross, left, right = (hsic(*pair, unbiased=unbiased) for pair in ((k, m), (k, k), (m, m)))
    return float(cross / (left * right) ** 0.5)


def test_pinned() -> None:
    assert linear_cka(X, X, unbiased=False) == pytest.approx(1, abs=1e-12)
    assert linear_cka(X, 2 * X @ TURN, unbiased=False) == pytest.approx(1, abs=1e-12)
    assert linear_cka(X, Y, unbiased=False) == pytest.approx(0.857493, abs=1e-6)
    x = torch.cat([X, torch.tensor([[2.0, 1]])])
    y = torch.cat([Y, torch.tensor([[2.0, 2]])])
    assert linear_cka(x, y, unbiased=False) == pytest.approx(0.838146, abs=1e-6)
    assert linear_cka(x, y, unbiased=True) == pytest.approx(0.727607, abs=1e-6)
    assert linear_cka(x, y) == linear_cka(x, y, unbiased=True)  # 5 samples, 2 features


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("shape", [(40, 5, 7), (9, 30, 12), (12, 6, 20)])
def test_kernel_form_written_out(unbiased: bool, shape: tuple[int, int, int]) -> None:
    rows, p, q = shape
    x = drawn(rows, p, 1) + 3.0
    y = drawn(rows, q, 2) - 1.0 + x[:, :1]
    expected = literal(x, y, unbiased=unbiased)
    assert linear_cka(x, y, unbiased=unbiased) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("unbiased", [False, True])
def test_batches_make_no_difference(rows: int, unbiased: bool) -> None:
    x, y = drawn(60, 8, 1) + 100.0, drawn(60, 4, 2)
    whole = linear_cka(x, y, unbiased=unbiased)
    assert linear_cka(x, y, unbiased=unbiased, rows=rows) == pytest.approx(whole, abs=1e-9)


def test_independent_features_are_near_zero_only_in_the_unbiased_form() -> None:
    x, y = drawn(100, 200, 1), drawn(100, 200, 2)
    biased, unbiased = (linear_cka(x, y, unbiased=form) for form in (False, True))
    assert biased is not None
    assert unbiased is not None
    assert biased > 0.5
    assert abs(unbiased) < 0.05


def test_what_has_no_alignment_gives_none() -> None:
    assert linear_cka(torch.full((20, 3), 0.1), drawn(20, 3, 1)) is None
    assert linear_cka(X[:1], X[:1], unbiased=False) is None
    assert linear_cka(X[:3], X[:3], unbiased=True) is None
    small = 1e-9 * drawn(20, 3, 1)
    assert linear_cka(small, small) == pytest.approx(1, abs=1e-9)


def test_different_samples_are_refused() -> None:
    with pytest.raises(DataError, match="expected features of the same samples"):
        LinearCKA(2, 2).update(X, Y[:3])
