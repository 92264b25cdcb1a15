"""Linear centred kernel alignment of two sets of features: 1 = equal up to rotation and scale."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetkit.errors import DataError

FEWEST = 4
"""Samples that the unbiased form needs."""


class LinearCKA:
    """Linear CKA of features that arrive in batches; memory does not grow with the samples.

    Biased form: |Y'X|^2 / (|X'X| |Y'Y|) of centred features, Frobenius norms. Unbiased form: each
    of the three is replaced by the unbiased estimate of HSIC, which leaves out a sample's
    similarity with itself.

    Args:
        left: p, number of features on the left.
        right: q, number of features on the right.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019;
    Song et al., "Feature Selection via Dependence Maximization", JMLR 2012, Eq. 5.

    Differences: features are moved by the mean of the first batch, which changes nothing but
        rounding; the kernel matrix is never formed.
    """

    def __init__(self, left: int, right: int) -> None:
        both = left + right
        self.count = 0
        self._parts = (slice(0, left), slice(left, both))
        self._shift = torch.zeros(both, dtype=torch.float64)
        self._products = torch.zeros(both, both, dtype=torch.float64)
        self._sums = torch.zeros(both, dtype=torch.float64)
        # n is the squared length of a sample's features on one side
        self._weighted = torch.zeros(2, both, dtype=torch.float64)  # sums of n z
        self._lengths = torch.zeros(2, dtype=torch.float64)  # sums of n
        self._pairs = torch.zeros(2, 2, dtype=torch.float64)  # sums of n n'

    def update(self, left: Tensor, right: Tensor) -> None:
        """Add samples.

        Args:
            left: (samples, p).
            right: (samples, q) of the same samples.

        Raises:
            DataError: the two differ in length.
        """
        if len(left) != len(right):
            raise DataError(
                f"cka: expected features of the same samples, found {len(left)} and {len(right)} "
                "rows; collect both models on one set"
            )
        both = torch.cat([left, right], dim=1).double()
        if self.count == 0:
            self._shift = both.mean(dim=0)
        both = both - self._shift
        lengths = torch.stack([both[:, part].square().sum(dim=1) for part in self._parts], dim=1)
        self.count += len(both)
        self._products += both.T @ both
        self._sums += both.sum(dim=0)
        self._weighted += lengths.T @ both
        self._lengths += lengths.sum(dim=0)
        self._pairs += lengths.T @ lengths

    def value(self, *, unbiased: bool | None = None) -> float | None:
        """Return CKA, or ``None`` when one side is constant or there are too few samples.

        Args:
            unbiased: ``None`` takes the unbiased form when there are fewer than four samples a
                feature.
        """
        if unbiased is None:
            unbiased = self.count < 4 * (max(part.stop - part.start for part in self._parts))
        if self.count < (FEWEST if unbiased else 2) or self._constant(0) or self._constant(1):
            return None
        measure = self._unbiased if unbiased else self._biased
        scale = measure(0, 0) * measure(1, 1)
        return measure(0, 1) / scale**0.5 if scale > 0 else None

    def _constant(self, side: int) -> bool:
        """Return whether only rounding errors tell the samples apart."""
        part = self._parts[side]
        size = self.count * float(self._shift[part].square().sum()) + float(self._lengths[side])
        return self._biased(side, side) <= (1e-13 * size) ** 2

    def _biased(self, a: int, b: int) -> float:
        one, two = self._parts[a], self._parts[b]
        means = self._sums[one, None] * self._sums[two] / self.count
        return float((self._products[one, two] - means).square().sum())

    def _unbiased(self, a: int, b: int) -> float:
        n, one, two = self.count, self._parts[a], self._parts[b]
        left, right, products = self._sums[one], self._sums[two], self._products[one, two]
        own = self._pairs[a, b]
        # Sums over the kernel matrices K and L without their diagonals.
        trace = products.square().sum() - own
        all_left = left @ left - self._lengths[a]
        all_right = right @ right - self._lengths[b]
        mixed = left @ products @ right + own
        mixed = mixed - self._weighted[b, one] @ left - self._weighted[a, two] @ right
        hsic = trace + all_left * all_right / ((n - 1) * (n - 2)) - 2.0 * mixed / (n - 2)
        return float(hsic / (n * (n - 3)))


def linear_cka(
    left: Tensor, right: Tensor, *, unbiased: bool | None = None, rows: int = 4096
) -> float | None:
    """Return the linear CKA of features (samples, p) and (samples, q), or ``None``.

    Wide features of few samples go through the samples x samples kernel, others through sums of
    feature products; both give the same number.

    Args:
        left: (samples, p).
        right: (samples, q) of the same samples.
        unbiased: ``None`` takes the unbiased form below four samples a feature.
        rows: samples that are added at a time.

    Raises:
        DataError: the two differ in length.
    """
    x, y = left.flatten(1), right.flatten(1)
    if unbiased is None:
        unbiased = len(x) < 4 * max(x.shape[1], y.shape[1])
    if len(x) == len(y):
        x, y = compressed(x), compressed(y)
    sums = LinearCKA(x.shape[1], y.shape[1])
    for a, b in zip(x.split(rows), y.split(rows), strict=True):
        sums.update(a, b)
    return sums.value(unbiased=unbiased)


def compressed(features: Tensor) -> Tensor:
    """Return features (samples, p) with the same products of centred rows, p at most the samples.

    What is compared several times is compressed once: that is what wide features cost.
    """
    x = features.flatten(1)
    if not 1 < len(x) < x.shape[1]:
        return x
    centred = x.double() - x.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    found: Tensor = vectors * values.clamp(min=0.0).sqrt()
    return found
