"""Training in the linearised model: kernel ridge regression with the Jacobian. Pure functions.

Around its weights theta_0 a network is f(x) + J(x) w. With the penalty n lambda |w|^2 the weights
that fit the residuals r of n samples are w = J^T (J J^T + n lambda I)^-1 r.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forgetkit.errors import BadHyperparameter
from forgetkit.per_sample import LogitsOf, Parameters, device_of, wide_type
from forgetkit.second_order import jacobian, pull_back, push_forward
from forgetkit.solvers import Solution, conjugate_gradient
from forgetkit.types import Batch

BUDGET = 4 * 2**30
"""Bytes that the stored Jacobian and kernel may take."""

COLUMNS = 65536


def removal_by_products(
    logits_of: LogitsOf,
    parameters: Parameters,
    forget: Sequence[Batch],
    retain: Sequence[Batch],
    residuals: tuple[Tensor, Tensor],
    *,
    penalty: float,
    tolerance: float = 1e-4,
    iterations: int = 100,
) -> tuple[Tensor, Tensor, tuple[Solution, Solution]]:
    """Return w(D_r) - w(D) and w(D_r), (P,) each, from products with the Jacobian only.

    With a = (K_r + n_r lambda I)^-1 r_r, padded by zeros, w(D) has the dual weights a + e where
    (K + n lambda I) e = (r_f - J_f w(D_r), -(n - n_r) lambda a), and the difference is -J^T e.
    Solving for e keeps the digits that a difference of two solutions would lose.

    Args:
        logits_of: the model as a function.
        parameters: tensors that move, by name.
        forget: D_f, a list: it is read twice a product.
        retain: D_r, a list.
        residuals: target minus prediction, (samples, classes), of D_f and D_r.
        penalty: lambda.
        tolerance: relative residual at which a solution is good enough.
        iterations: largest number of products a solution.
    """
    own, kept = residuals
    everything = [*forget, *retain]
    total = len(own) + len(kept)

    def kernel(batches: Sequence[Batch], dual: Tensor) -> Tensor:
        weights = pull_back(logits_of, parameters, batches, dual)
        return push_forward(logits_of, parameters, batches, weights)

    first = conjugate_gradient(
        lambda dual: kernel(retain, dual),
        kept,
        damping=len(kept) * penalty,
        tolerance=tolerance,
        iterations=iterations,
    )
    weights = pull_back(logits_of, parameters, retain, first.value)
    surprise = own
    if len(own) > 0:
        surprise = own - push_forward(logits_of, parameters, forget, weights)
    right = torch.cat([surprise, -len(own) * penalty * first.value])
    second = conjugate_gradient(
        lambda dual: kernel(everything, dual),
        right,
        damping=total * penalty,
        tolerance=tolerance,
        iterations=iterations,
    )
    delta = -pull_back(logits_of, parameters, everything, second.value)
    return delta, weights, (first, second)


def removal_by_kernel(
    logits_of: LogitsOf,
    parameters: Parameters,
    forget: Sequence[Batch],
    retain: Sequence[Batch],
    residuals: tuple[Tensor, Tensor],
    *,
    penalty: float,
    budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return w(D_r) - w(D) and w(D_r), (P,) each, from the stored kernel by Cholesky in float64.

    Args:
        logits_of: the model as a function.
        parameters: tensors that move, by name.
        forget: D_f.
        retain: D_r.
        residuals: target minus prediction, (samples, classes), of D_f and D_r.
        penalty: lambda.
        budget: bytes for the Jacobian and the kernel; default 4 GiB.

    Raises:
        BadHyperparameter: they would not fit.
    """
    own, kept = residuals
    classes = own.shape[1]
    rows = (len(own) + len(kept)) * classes
    count = sum(p.numel() for p in parameters.values())
    size = max(p.element_size() for p in parameters.values())
    wide = wide_type(device_of(parameters))
    allowed = BUDGET if budget is None else budget
    needed = rows * count * size + 2 * rows * rows * 8
    if needed > allowed:
        raise BadHyperparameter(
            f"ntk: expected a kernel of at most {allowed / 2**30:.1f} GiB for solver='cholesky', "
            f"found {needed / 2**30:.1f} GiB for {rows} rows (samples times classes) and {count} "
            "weights; pass solver='cg', which stores neither, or lower retain_samples"
        )
    slopes = jacobian(logits_of, parameters, [*forget, *retain], classes=classes)
    gram = torch.zeros(rows, rows, dtype=wide, device=slopes.device)
    for columns in slopes.split(COLUMNS, dim=1):
        some = columns.to(wide)
        gram += some @ some.T
    lost = len(own) * classes

    def fitted(start: int, right: Tensor) -> Tensor:
        """Return J^T (K + n lambda I)^-1 r for the rows from ``start``."""
        block = gram[start:, start:].clone()
        block.diagonal().add_(len(right) * penalty)
        dual = torch.cholesky_solve(right.to(gram).reshape(-1, 1), torch.linalg.cholesky(block))
        pieces = slopes[start:].split(COLUMNS, dim=1)
        return torch.cat([piece.T.to(wide) @ dual[:, 0] for piece in pieces])

    weights = fitted(lost, kept)
    return weights - fitted(0, torch.cat([own, kept])), weights


def removal_scale(delta: Tensor, error: Tensor) -> float:
    """Return how far to go along ``delta``: 1 + 2 |cos(delta, error)| |error| / |delta|.

    Args:
        delta: the change of the linearised model.
        error: what the linearised model misses of the way from the initial weights,
            theta_0 - theta_init - w(D_r).
    """
    square = float((delta * delta).sum())
    if square == 0.0:
        return 1.0
    return 1.0 + 2.0 * abs(float((delta * error).sum())) / square
