"""Directions that retained layer inputs use, and edits that stay clear of them.

Notation: W (outputs, d) a weight with its kernel flattened, C (groups, d, d) the second moments of
its inputs, C = V diag(lambda) V^T with lambda descending. A grouped convolution has one C, and rows
of W of its own, for each group.

Source: Hoang et al., "Learn to Unlearn for Deep Neural Networks", WACV 2024, arXiv:2312.04095,
    section 3 (core space); Lin et al., "TRGP", ICLR 2022, arXiv:2202.02931 (trust region); Kodge,
    Saha, Roy, "Deep Unlearning", TMLR 2024, arXiv:2312.00761 (scaled projections).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

_TIE = 1e-12


@dataclass(frozen=True)
class Eigen:
    """The eigenvalues of C.

    Args:
        values: lambda, (groups, d) float64, descending, noise and negative ones set to 0.
        vectors: V, (groups, d, d) float64, one direction a column.
        negative: sum of |lambda < 0| over the sum of lambda > 0: 0 when C is a sum of squares.
    """

    values: Tensor
    vectors: Tensor
    negative: float


def eigen(moment: Tensor, floor: float = 1e-12) -> Eigen:
    """Decompose second moments (groups, d, d), in float64.

    A singular value decomposition would turn a negative eigenvalue, left by subtracting moments
    that do not match, into a strong direction.

    Args:
        moment: symmetric.
        floor: part of the largest eigenvalue below which one counts as 0.
    """
    ascending, vectors = _decomposed(moment.double())
    values, vectors = ascending.flip(-1), vectors.flip(-1)
    positive = float(values.clamp(min=0).sum())
    negative = -float(values.clamp(max=0).sum()) / positive if positive > 0 else 0.0
    kept = torch.where(values < floor * values[:, :1], 0.0, values).clamp(min=0)
    return Eigen(kept, vectors, negative)


def _decomposed(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (groups, d), ascending, and eigenvectors (groups, d, d).

    Columns of zeros, padding that no patch gets past or dead channels, are eigenvectors themselves;
    only the others are decomposed, whose cube the time grows with.
    """
    used = (symmetric != 0).flatten(0, 1).any(dim=0)
    if bool(used.all()):
        return _by_lapack(symmetric)
    some, rest = used.nonzero()[:, 0], (~used).nonzero()[:, 0]
    found, directions = _by_lapack(symmetric[:, some[:, None], some])
    values = torch.zeros_like(symmetric[:, 0])
    values[:, : len(some)] = found
    vectors = torch.zeros_like(symmetric)
    vectors[:, some, : len(some)] = directions
    vectors[:, rest, torch.arange(len(some), len(used), device=rest.device)] = 1.0
    order = values.argsort(dim=-1, stable=True)
    return values.gather(1, order), vectors.gather(2, order[:, None, :].expand_as(vectors))


def _by_lapack(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (groups, d), ascending, and eigenvectors (groups, d, d).

    LAPACK's divide and conquer, which torch calls, may not converge where thousands of eigenvalues
    are 0, as those of a wide layer's inputs on few images. Its other algorithm, relatively robust
    representations, does.
    """
    try:
        found = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        import scipy.linalg

        if not bool(torch.isfinite(symmetric).all()):
            raise
        pairs = [scipy.linalg.eigh(one.cpu().numpy(), driver="evr") for one in symmetric]
        values, vectors = (
            torch.stack([torch.from_numpy(part) for part in parts]).to(symmetric)
            for parts in zip(*pairs, strict=True)
        )
        return values, vectors
    return found.eigenvalues, found.eigenvectors


def core_rank(values: Tensor, share: float, spectrum: str = "energy") -> Tensor:
    """Return the smallest k whose first k directions hold a share of the spectrum, (groups,).

    Args:
        values: lambda, (groups, d), descending.
        share: gamma; 0 gives 0.
        spectrum: ``"energy"`` adds up lambda, ``"sigma"`` the square roots of lambda.
    """
    heights = values if spectrum == "energy" else values.sqrt()
    reached = heights.cumsum(-1)
    total = reached[:, -1:]
    short = (reached < share * total - _TIE * total).sum(-1)
    return torch.where((total[:, 0] <= 0) | (share <= 0), 0, (short + 1).clamp(max=values.shape[1]))


@dataclass(frozen=True)
class Projection:
    """Removes, or keeps only, the span of some directions.

    Args:
        basis: orthonormal columns, (groups, d, directions); columns of zeros fill up groups with
            fewer directions.
        keeps: whether the span is what remains (else what is taken away).
    """

    basis: Tensor
    keeps: bool

    @classmethod
    def away_from(cls, found: Eigen, ranks: Tensor) -> Projection:
        """Return I - M M^T with M the first ``ranks`` (groups,) directions of each group.

        Of M and its complement the smaller one is kept: the product is cheaper.
        """
        width = found.values.shape[1]
        inside = torch.arange(width, device=ranks.device) < ranks[:, None]  # (groups, d)
        keeps = bool(ranks.sum() > (~inside).sum())
        if keeps:
            basis = (found.vectors * ~inside[:, None, :])[:, :, int(ranks.min()) :]
        else:
            basis = (found.vectors * inside[:, None, :])[:, :, : int(ranks.max())]
        return cls(basis.contiguous(), keeps)

    def of(self, rows: Tensor) -> Tensor:
        """Return the projection of a weight or its gradient, of any shape (outputs, ...)."""
        groups, width = self.basis.shape[0], self.basis.shape[1]
        flat = rearrange(rows.reshape(len(rows), width), "(g o) d -> g o d", g=groups)
        basis = self.basis.to(flat.dtype)
        inside = (flat @ basis) @ basis.transpose(1, 2)
        found = inside if self.keeps else flat - inside
        return found.reshape(rows.shape)


def in_region(weight: Tensor, basis: Tensor, scaling: Tensor) -> Tensor:
    """Return W (I - M M^T) + W M Q M^T, shaped like W.

    It is the weight of a layer whose old directions M are rescaled by Q. With Q = I it is W.

    Args:
        weight: W, (outputs, ...).
        basis: M, (d, directions), orthonormal columns.
        scaling: Q, (directions, directions).
    """
    flat = weight.reshape(len(weight), -1)
    unit = torch.eye(len(scaling), dtype=scaling.dtype, device=scaling.device)
    return (flat + (flat @ basis) @ (scaling - unit) @ basis.T).reshape(weight.shape)


def weakest(found: Eigen, rank: int, most: int) -> Tensor:
    """Return the last ``most`` of the first ``rank`` directions, (d, directions)."""
    return found.vectors[0, :, max(rank - most, 0) : rank].contiguous()


def scaled_shares(values: Tensor, scale: float) -> Tensor:
    """Return Lambda_i = a s_i / ((a - 1) s_i + 1), (groups, d), of s_i = lambda_i / sum lambda.

    A large a = ``scale`` gives 1 to every direction in use, a = 1 gives its share s_i.
    """
    total = values.sum(-1, keepdim=True)
    share = torch.where(total > 0, values / total, 0.0)
    return scale * share / ((scale - 1.0) * share + 1.0)


class Removal:
    """A weight without the input directions that one set uses and another does not.

    With M = U Lambda U^T of each set, the layer sees (I - (I - M_r) M_f) x:

        W P^T with P = I - (M_f - M_f M_r)

    All that does not depend on the scales in Lambda is computed once, what depends on the retained
    set's alone when that changes. Directions that a set does not use have Lambda = 0 and are left
    out.

    Args:
        weight: W, (outputs, ...).
        retain: eigenvalues of the inputs to keep.
        forget: of those to remove.
    """

    def __init__(self, weight: Tensor, retain: Eigen, forget: Eigen) -> None:
        groups, width = retain.values.shape
        self._weight = weight.detach().clone()
        flat = self._weight.reshape(len(weight), width).to(retain.vectors)
        rows = rearrange(flat, "(g o) d -> g o d", g=groups)
        self._retain, kept = _in_use(retain)
        self._forget, gone = _in_use(forget)
        self._in_retain = rows @ kept
        self._in_forget = rows @ gone
        self._across = kept.transpose(1, 2) @ gone
        self._back = gone.transpose(1, 2)
        self._through: tuple[float, Tensor] | None = None

    def edited(self, retain_scale: float, forget_scale: float) -> Tensor:
        """Return W P^T, shaped and typed like W."""
        if self._through is None or self._through[0] != retain_scale:
            kept = scaled_shares(self._retain, retain_scale)[:, None, :]
            inside = (self._in_retain * kept) @ self._across - self._in_forget
            self._through = (retain_scale, inside)
        gone = scaled_shares(self._forget, forget_scale)[:, None, :]
        change = ((self._through[1] * gone) @ self._back).reshape(self._weight.shape)
        return (self._weight.to(change) + change).to(self._weight)


def _in_use(found: Eigen) -> tuple[Tensor, Tensor]:
    """Return lambda (groups, used) and V (groups, d, used) up to the last lambda above 0."""
    used = int((found.values > 0).sum(-1).max())
    return found.values[:, :used], found.vectors[:, :, :used].contiguous()
