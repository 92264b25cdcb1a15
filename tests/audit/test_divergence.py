"""Divergences of predictions: pinned values, and agreement with scipy and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from torch import Generator, Tensor
from torchmetrics import KLDivergence
from torchmetrics.regression import JensenShannonDivergence

from forgetkit.auditing import divergence
from forgetkit.auditing.divergence import LN2

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
Q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64).log()


def drawn(seed: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randn(30, 6, generator=generator, dtype=torch.float64).log_softmax(dim=1)


def close(found: Tensor, expected: list[float] | float) -> bool:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    return torch.allclose(found, wanted, atol=1e-6, rtol=0)


def test_pinned() -> None:
    assert close(divergence.entropy(P), [0.801819, 0.639032])
    assert close(divergence.entropy(P).mean(), 0.720425)
    assert close(divergence.entropy(P).mean() / math.log(3), 0.655759)
    assert close(divergence.kl(P, Q).mean(), 0.111820)
    assert close(divergence.kl(Q, P).mean(), 0.131180)
    assert close(divergence.js(P, Q), [0.006959, 0.052122])
    assert close(divergence.js(P, Q).mean(), 0.029540)
    assert close(divergence.js(P, Q).mean() / LN2, 0.042618)
    assert close(divergence.js(P, Q).sqrt(), [0.083420, 0.228303])
    assert close(divergence.zrf(P, Q).mean(), 0.957382)
    assert close(divergence.differences(P, Q, "l2").mean(), 0.257794)
    assert close(divergence.differences(P, Q, "l1").mean(), 0.4)
    assert close(divergence.differences(P, Q, "l2").square().mean().sqrt(), 0.282843)
    shares = divergence.distribution(torch.tensor([0] * 8 + [1, 2]), 3)
    assert divergence.spread(shares) == pytest.approx(0.581672, abs=1e-6)


def test_disjoint_predictions_are_one_bit_apart() -> None:
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
    assert close(divergence.js(sure[:1], sure[1:]) / LN2, [1.0])
    assert close(divergence.entropy(sure), [0.0, 0.0])
    assert float(divergence.kl(sure[:1], sure[1:])[0]) == math.inf
    assert close(divergence.kl(sure, sure), [0.0, 0.0])


def test_scipy_and_torchmetrics_agree() -> None:
    p, q = drawn(1), drawn(2)
    assert close(divergence.entropy(p), scipy_entropy(p.exp().numpy(), axis=1).tolist())
    assert close(divergence.kl(p, q).mean(), float(KLDivergence(log_prob=True)(p, q)))
    expected = float(JensenShannonDivergence(log_prob=True)(p, q))
    assert close(divergence.js(p, q).mean(), expected)
    distances = jensenshannon(p.exp().numpy(), q.exp().numpy(), axis=1)
    assert close(divergence.js(p, q).sqrt(), distances.tolist())


def test_large_half_precision_logits_stay_finite() -> None:
    logits = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16)
    extreme = logits.double().log_softmax(dim=1)
    even = torch.zeros(1, 3, dtype=torch.float64).log_softmax(dim=1)
    assert float(divergence.entropy(extreme)[0]) == 0.0
    assert math.isfinite(float(divergence.kl(even, extreme)[0]))
    assert math.isfinite(float(divergence.kl(extreme, even)[0]))
    assert 0 < float(divergence.js(even, extreme)[0]) < LN2


def test_restricted_leaves_out_classes() -> None:
    log_probs = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    assert close(divergence.restricted(log_probs, (1, 2)).exp(), [0.75, 0.25])


def test_histograms_with_common_bins() -> None:
    left = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    right = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64)
    found = divergence.histogram_js(left, right, bins=5, span=(0.0, 1.0))
    assert found == pytest.approx(0.655639, abs=1e-6)
    assert divergence.histogram_js(left, left) == 0.0
    assert divergence.histogram_js(left, left + 9) == pytest.approx(1.0, abs=1e-12)
    assert divergence.histogram_js(left[:1], left[:1]) == 0.0
    far = torch.cat([right.repeat(5) + 1, torch.tensor([400.0])]).double()
    assert divergence.histogram_js(left.repeat(5), far) == pytest.approx(1.0, abs=1e-12)
    assert [divergence.bins_for(count) for count in (0, 24, 100, 5000)] == [5, 5, 10, 30]
