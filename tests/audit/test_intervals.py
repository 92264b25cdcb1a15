"""Intervals and what a difference means."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from forgetkit.auditing.intervals import compared, mean_interval, percentile_interval, wilson
from forgetkit.errors import DataError


@pytest.mark.parametrize(
    ("hits", "samples", "expected"),
    [
        (0, 100, (0.0, 0.036993)),
        (0, 1000, (0.0, 0.003827)),
        (9, 10, (0.595850, 0.982123)),
        (50, 100, (0.403832, 0.596168)),
        (100, 100, (1 - 0.036993, 1.0)),
    ],
)
def test_wilson_pinned(hits: int, samples: int, expected: tuple[float, float]) -> None:
    assert wilson(hits, samples) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("hits", "samples"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(hits: int, samples: int) -> None:
    with pytest.raises(DataError, match="expected hits between 0"):
        wilson(hits, samples)


def values(count: int, seed: int, mean: float = 0.0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return mean + torch.randn(count, generator=generator, dtype=torch.float64)


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    interval = mean_interval(values(400, 1, mean=2.0), seed=3)
    assert interval is not None
    low, high = interval
    assert interval == mean_interval(values(400, 1, mean=2.0), seed=3)
    assert interval != mean_interval(values(400, 1, mean=2.0), seed=4)
    # the normal interval is 2 x 1.96 / 20 wide
    assert high - low == pytest.approx(0.196, rel=0.15)
    assert low < 2.0 < high


def test_what_has_no_interval() -> None:
    assert mean_interval(torch.tensor([])) is None
    assert mean_interval(torch.tensor([1.0, torch.inf])) is None
    assert percentile_interval(torch.tensor([torch.nan])) is None
    assert mean_interval(torch.ones(9)) is None  # one value would have an interval of no width
    assert mean_interval(torch.ones(10)) == (1.0, 1.0)
    assert compared(torch.ones(9), [torch.zeros(9)]) == "not decidable"
    assert compared(torch.ones(10), [torch.zeros(10)]) == "residual"


def test_a_difference_counts_when_every_retrained_model_differs() -> None:
    own = values(300, 1)
    assert compared(own, []) == "not decidable"
    assert compared(own, [own]) == "as retrain"
    assert compared(own, [own - 1]) == "residual"
    assert compared(own, [own + 1]) == "over-forgotten"
    assert compared(own, [own - 1, own]) == "as retrain"
    assert compared(own, [own - 1, own + 1]) == "as retrain"
    assert compared(own, [own - 1], more="over-forgotten") == "over-forgotten"
    assert compared(own, [own + 1], more="over-forgotten") == "residual"
    assert compared(own, [own * torch.inf]) == "not decidable"
