"""Linear systems that are known by their products only. Vectors have any shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from forgetkit.errors import UnlearningFailed

Product: TypeAlias = Callable[[Tensor], Tensor]
"""A symmetric linear map."""

PATIENCE = 20
"""Steps of LiSSA without a new smallest change after which it stops."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        value: the answer, shaped as the right side.
        residual: what is left, relative to the right side; for LiSSA the last change, absolute.
        steps: products made.
        converged: whether the tolerance was reached.
    """

    value: Tensor
    residual: float
    steps: int
    converged: bool

    def __str__(self) -> str:
        """Say how it ended."""
        how = "converged" if self.converged else "stopped"
        return f"{how} after {self.steps} products with residual {self.residual:.1e}"


def conjugate_gradient(
    product: Product,
    right: Tensor,
    *,
    damping: float = 0.0,
    tolerance: float = 1e-4,
    iterations: int = 100,
) -> Solution:
    """Solve ``(A + damping I) x = right`` for a symmetric positive A.

    Args:
        product: multiplies by A.
        right: the right side.
        damping: what is added to the diagonal.
        tolerance: length of the residual, relative to the right side, that is small enough.
        iterations: largest number of products.

    Raises:
        UnlearningFailed: a direction in which A + damping I is not positive, or a result that is
            not finite.
    """
    start = _length(right)
    answer = torch.zeros_like(right)
    if start == 0.0:
        return Solution(answer, 0.0, 0, converged=True)
    residual, direction = right.clone(), right.clone()
    square = float((residual * residual).sum())
    for step in range(1, iterations + 1):
        image = product(direction) + damping * direction
        curvature = float((direction * image).sum())
        if not curvature > 0.0:
            raise UnlearningFailed(
                f"conjugate gradient: expected positive curvature along every direction, found "
                f"{curvature:.3g} in step {step}; raise the damping (now {damping:g}) or use the "
                "Gauss-Newton matrix, which is never negative"
            )
        length = square / curvature
        answer = answer + length * direction
        residual = residual - length * image
        before, square = square, float((residual * residual).sum())
        if not math.isfinite(square):
            raise UnlearningFailed(
                f"conjugate gradient: expected finite numbers, found {square} in step {step}; "
                "raise the damping"
            )
        left = math.sqrt(square) / start
        if left <= tolerance:
            return Solution(answer, left, step, converged=True)
        direction = residual + (square / before) * direction
    return Solution(answer, left, iterations, converged=False)


def lissa(
    product: Product,
    right: Tensor,
    *,
    decay: float,
    scale: float,
    tolerance: float = 1e-4,
    iterations: int = 1000,
) -> Solution:
    """Solve ``(H + decay scale I) x = right`` by the recursion of LiSSA.

        u <- v + (1 - decay) u - H u / scale,  x = u / scale

    It diverges when the largest eigenvalue of H exceeds (2 - decay) scale, or the smallest lies
    below -decay scale. It stops when u changes by less than ``tolerance``, or after 20 steps
    without a new smallest change.

    Args:
        product: multiplies by H.
        right: the right side, v.
        decay: d; the damping in the units of H is decay times scale.
        scale: s.
        tolerance: length of the change of u that is small enough.
        iterations: largest number of products.

    Raises:
        UnlearningFailed: the recursion diverged.
    """
    answer = right.clone()
    best, best_at = math.inf, 0
    first = change = math.inf
    for step in range(1, iterations + 1):
        moved = right + (1.0 - decay) * answer - product(answer) / scale
        change = _length(moved - answer)
        answer = moved
        first = change if step == 1 else first
        if not change <= 1e3 * first or math.isinf(change):
            raise UnlearningFailed(
                f"LiSSA: expected the recursion to settle, found a change of {change:.3g} in step "
                f"{step} after {first:.3g} in the first; raise its scale (now {scale:g}) above "
                "half of the largest eigenvalue, or use solver='cg'"
            )
        if change <= tolerance:
            return Solution(answer / scale, change, step, converged=True)
        if change < best:
            best, best_at = change, step
        if step - best_at >= PATIENCE:
            break
    return Solution(answer / scale, change, step, converged=False)


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
