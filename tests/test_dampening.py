"""Selection, multipliers and the adaptive threshold of synaptic dampening."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Generator

from forgetkit.dampening import adaptive_threshold, dampen, dampened, multipliers, percentile
from forgetkit.errors import DataError


def test_multipliers_are_pinned() -> None:
    forget = torch.tensor([4.0, 1.0, 0.5, 10.0])
    everything = torch.tensor([0.2, 0.2, 0.2, 1.0])
    found = multipliers(forget, everything, threshold=10.0, strength=1.0)
    # The last is exactly alpha times as important: the comparison is strict.
    assert found.tolist() == pytest.approx([0.05, 1.0, 1.0, 1.0])
    assert dampened(forget, everything, 10.0).tolist() == [True, False, False, False]


def test_a_weight_that_matters_to_nothing_else_becomes_zero() -> None:
    found = multipliers(
        torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), threshold=10.0, strength=1.0
    )
    assert found.tolist() == [0.0, 1.0]


def test_an_infinite_factor_selects_what_matters_to_nothing_else() -> None:
    forget, everything = torch.tensor([1.0, 0.0, 9.0]), torch.tensor([0.0, 0.0, 1.0])
    assert dampened(forget, everything, math.inf).tolist() == [True, False, False]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0, 1e6])
def test_equals_a_plain_loop_and_never_grows_a_weight(threshold: float, strength: float) -> None:
    generator = Generator().manual_seed(0)
    forget, everything = torch.rand(2, 200, generator=generator, dtype=torch.float64)
    forget[:5] = 0.0
    everything[3:9] = 0.0
    found = multipliers(forget, everything, threshold=threshold, strength=strength)
    for own, all_of_it, factor in zip(
        forget.tolist(), everything.tolist(), found.tolist(), strict=True
    ):
        expected = min(1.0, strength * all_of_it / own) if own > threshold * all_of_it else 1.0
        assert factor == pytest.approx(expected)
        assert 0.0 <= factor <= 1.0


def test_an_infinite_threshold_changes_nothing() -> None:
    forget, everything = torch.rand(2, 50, generator=Generator().manual_seed(1)) + 0.01
    parameters = {"a": torch.ones(50)}
    count = dampen(parameters, {"a": forget}, {"a": everything}, threshold=math.inf, strength=0.1)
    assert count == 0
    assert torch.equal(parameters["a"], torch.ones(50))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.01, 99.30685), (0.05, 98.20824), (0.10, 97.60210), (0.20, 96.95548)],
)
def test_percentiles_are_pinned(share: float, expected: float) -> None:
    assert percentile(share) == pytest.approx(expected, abs=1e-5)
    assert 100.0 - percentile(share, 2.0) == pytest.approx(2 * (100.0 - expected), abs=2e-5)
    assert percentile(1.0, 20.0) == pytest.approx(100.0 - 20 * math.log(101.0))
    assert percentile(1.0, 30.0) == 0.0


@pytest.mark.parametrize("count", [1, 2, 37, 400])
def test_the_threshold_is_the_percentile_of_the_ratios(count: int) -> None:
    generator = Generator().manual_seed(2)
    own, kept = torch.rand(2, count, generator=generator, dtype=torch.float64) + 0.1
    forget = {"a": torch.cat([own, torch.zeros(9)])[: count + 4], "b": torch.zeros(5)}
    everything = {"a": torch.cat([kept, torch.zeros(9)])[: count + 4], "b": torch.zeros(5)}
    found = adaptive_threshold(forget, everything, 0.05)  # the zeros over zeros do not count
    assert found == pytest.approx(np.percentile((own / kept).numpy(), percentile(0.05)))


def test_a_ratio_over_zero_counts_as_infinite() -> None:
    forget, everything = {"a": torch.ones(4)}, {"a": torch.tensor([1.0, 1.0, 1.0, 0.0])}
    assert adaptive_threshold(forget, everything, 0.2, selection=20.0) == 1.0
    assert math.isinf(adaptive_threshold(forget, {"a": torch.zeros(4)}, 0.2))


def test_no_importance_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="expected weights with a gradient"):
        adaptive_threshold({"a": torch.zeros(3)}, {"a": torch.zeros(3)}, 0.1)


def test_weights_that_matter_to_the_rest_alone_count_among_the_ratios() -> None:
    forget, everything = {"a": torch.tensor([0.0, 0, 1, 2, 3])}, {"a": torch.ones(5)}
    found = adaptive_threshold(forget, everything, 0.2, selection=20.0)
    assert found == pytest.approx(0.5644, abs=1e-4)
