"""Training in the linearised model: kernel ridge regression with the Jacobian. Pure functions.

Around its weights theta_0 a network is f(x) + J(x) w. With the penalty n lambda |w|^2 the weights
that fit the residuals r of n samples are w = J^T (J J^T + n lambda I)^-1 r.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from forgetkit.errors import BadHyperparameter, UnlearningFailed
from forgetkit.per_sample import LogitsOf, Parameters, device_of, wide_type
from forgetkit.second_order import jacobian, pull_back, push_forward
from forgetkit.solvers import Solution, conjugate_gradient
from forgetkit.types import Batch

BUDGET = 4 * 2**30
"""Bytes that solving with the kernel may take, and the kernel with a block of the Jacobian. On top
come the gradients of some samples that a block is made from, and some of its columns in float64."""

COPIES = 3
"""Kernels at once in a solution: as it is, with its penalty, and its factor."""

PRODUCTS = 1e13
"""Multiplications that a kernel may take to be called cheap, those for the Jacobian not counted:
some ten minutes of a core or two."""

COLUMNS = 4096
"""Columns of J in one product: as many are copied to float64 at a time."""

TILE = 2048
"""Rows of the kernel in one product: what lies above the diagonal is left out."""


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
    """Return w(D_r) - w(D) and w(D_r), (P,) each, from the kernel by Cholesky in float64.

    Args:
        logits_of: the model as a function.
        parameters: tensors that move, by name.
        forget: D_f, a list: it is read twice for each block of columns of the Jacobian, or once
            where all of it fits beside the solution.
        retain: D_r, a list.
        residuals: target minus prediction, (samples, classes), of D_f and D_r.
        penalty: lambda.
        budget: bytes for the kernel three times, or once with a block of the Jacobian; default
            4 GiB.

    Raises:
        BadHyperparameter: the kernel would not fit.
        UnlearningFailed: the kernel with the penalty is not positive within rounding.
    """
    own, kept = residuals
    everything = [*forget, *retain]
    rows = (len(own) + len(kept)) * own.shape[1]
    allowed = BUDGET if budget is None else budget
    needed = kernel_size(rows)
    if needed > allowed:
        raise BadHyperparameter(
            f"ntk: expected a kernel that is solved in {allowed / 2**30:.1f} GiB for "
            f"solver='cholesky', found {needed / 2**30:.1f} GiB for {rows} rows (samples times "
            "classes); pass solver='cg', which stores none, or lower retain_samples"
        )
    blocks = Blocks(
        logits_of, parameters, everything, rows=rows, classes=own.shape[1],
        space=allowed - needed // COPIES, kept=allowed - needed,
    )  # fmt: skip
    gram = lower_kernel(blocks)
    lost = own.numel()
    alone = torch.zeros(rows, dtype=gram.dtype, device=gram.device)
    alone[lost:] = _dual(gram[lost:, lost:], kept, len(kept) * penalty)
    both = _dual(gram, torch.cat([own, kept]), (len(own) + len(kept)) * penalty)
    found = torch.cat([block.T @ torch.stack([alone - both, alone], dim=1) for block in blocks])
    return found[:, 0], found[:, 1]


def kernel_is_cheap(parameters: Parameters, rows: int) -> bool:
    """Return whether the kernel fits and takes no more multiplications than ``PRODUCTS``."""
    count = sum(p.numel() for p in parameters.values())
    return kernel_size(rows) <= BUDGET and rows * rows * count / 2 <= PRODUCTS


def kernel_size(rows: int) -> int:
    """Return the bytes that solving with a kernel of so many rows takes."""
    return COPIES * rows * rows * 8


class Blocks:
    """The Jacobian, (rows, P), in blocks of columns; a second reading makes large ones again.

    A block is at the precision of the weights (at least float32), and what it gives in float64, a
    few thousand columns at a time: a dual vector is long when the penalty is small, and what is
    left of its sum with the Jacobian's rows is short.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: read once a block.
        rows: samples times classes.
        classes: number of logits.
        space: bytes for a block.
        kept: bytes that may stay between readings: a Jacobian that fits is made once.
    """

    def __init__(
        self,
        logits_of: LogitsOf,
        parameters: Parameters,
        batches: Sequence[Batch],
        *,
        rows: int,
        classes: int,
        space: int,
        kept: int = 0,
    ) -> None:
        self.rows = rows
        self.device = device_of(parameters)
        self.wide = wide_type(self.device)
        self._precision = reduce(
            torch.promote_types, (tensor.dtype for tensor in parameters.values()), torch.float32
        )
        self._count = sum(p.numel() for p in parameters.values())
        self.width = max(1, space // (max(1, rows) * self._precision.itemsize))
        self._rows_of = partial(jacobian, logits_of, parameters, batches, classes=classes)
        self._kept = kept
        self._only: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """Yield a few thousand columns, (rows, columns), in float64."""
        for start in range(0, self._count, self.width):
            for part in self._block(start).split(COLUMNS, dim=1):
                yield part.to(self.wide)

    def _block(self, start: int) -> Tensor:
        if self._only is not None:
            return self._only
        stop = min(start + self.width, self._count)
        block = torch.empty(self.rows, stop - start, dtype=self._precision, device=self.device)
        filled = 0
        for some in self._rows_of(columns=(start, stop)):
            block[filled : filled + len(some)] = some
            filled += len(some)
        if self.width >= self._count and block.nbytes <= self._kept:
            self._only = block
        return block


def lower_kernel(blocks: Blocks) -> Tensor:
    """Return J J^T, (rows, rows), in float64; above the diagonal only tiles are filled."""
    gram = torch.zeros(blocks.rows, blocks.rows, dtype=blocks.wide, device=blocks.device)
    for block in blocks:
        for tile in range(0, blocks.rows, TILE):
            end = tile + TILE
            gram[tile:end, :end] += block[tile:end] @ block[:end].T
    return gram


def _dual(gram: Tensor, right: Tensor, damping: float) -> Tensor:
    """Return (K + damping I)^-1 r, (rows,), reading K below its diagonal only."""
    if not bool(torch.isfinite(gram.diagonal()).all()):
        raise UnlearningFailed(
            "ntk: expected finite derivatives of the logits by the weights, found NaN or infinity; "
            "check the images and the model's weights"
        )
    block = gram.clone()
    block.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(block)
    del block
    if bool(failed):
        raise UnlearningFailed(
            f"ntk: expected a kernel that is positive with {damping:.3g} (penalty times samples) "
            f"on its diagonal, found that rounding is larger than that at row {int(failed)} of "
            f"{len(gram)}; raise penalty"
        )
    return torch.cholesky_solve(right.to(gram).reshape(-1, 1), factor)[:, 0]


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
