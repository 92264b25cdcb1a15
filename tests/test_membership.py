from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import gaussian_kde
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Generator, Tensor

from forgetkit.errors import DataError
from forgetkit.membership import final_score, forgetting_score, jensen_shannon_distance


def exponential(count: int, scale: float, seed: int) -> Tensor:
    draws = torch.rand(count, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return -scale * torch.log1p(-draws)


@pytest.mark.parametrize(
    ("accuracy", "score", "final"),
    [
        (0.5685, 0.0305, 0.75375),
        (0.5601, 0.0744, 0.70565),
        (0.5789, 0.2784, 0.51105),
        (0.9017, 0.0462, 0.90465),
        (1.0, 0.0, 1.0),
        (0.0, 0.5, 0.0),
    ],
)
def test_final_score_pinned(accuracy: float, score: float, final: float) -> None:
    assert final_score(accuracy, score) == pytest.approx(final, abs=1e-9)


def test_score_equals_a_literal_attack() -> None:
    forget, unseen = exponential(90, 0.3, 1), exponential(60, 1.0, 2)
    draws = Generator().manual_seed(5)
    kept = forget[torch.randperm(90, generator=draws)[:60]].numpy()
    others = unseen[torch.randperm(60, generator=draws)].numpy()
    x = np.concatenate([kept, others]).reshape(-1, 1)
    y = np.concatenate([np.ones(60), np.zeros(60)])
    right = []
    for train, test in StratifiedShuffleSplit(10, test_size=0.1, random_state=0).split(x, y):
        attack = LogisticRegression().fit(x[train], y[train])
        right.append((attack.predict(x[test]) == y[test]).mean())
    expected = abs(float(np.mean(right)) - 0.5)
    assert expected > 0.05
    assert forgetting_score(forget, unseen, seed=5) == pytest.approx(expected, abs=1e-12)


def test_separate_losses_give_the_worst_score() -> None:
    ramp = torch.arange(20, dtype=torch.float64) * 0.01
    assert forgetting_score(ramp, 5 + ramp) == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_one_distribution_gives_a_score_near_zero(seed: int) -> None:
    same = exponential(2000, 1.0, seed)
    assert forgetting_score(same[:1000], same[1000:]) < 0.05


def test_the_larger_group_is_cut() -> None:
    few, many = exponential(40, 1.0, 1), exponential(4000, 1.0, 2)
    # a guess of the larger group would be right in 99 of 100 cases
    assert forgetting_score(few, many) < 0.25
    assert forgetting_score(many, few) < 0.25


def test_a_larger_gap_gives_a_larger_score() -> None:
    unseen = exponential(500, 1.0, 1)
    scores = [forgetting_score(exponential(500, scale, 2), unseen) for scale in (0.8, 0.3, 0.02)]
    assert scores == sorted(scores)
    assert scores[2] > 0.4


@pytest.mark.parametrize(("count", "scale"), [(200, 0.4), (37, 3.0), (5000, 1.0)])
def test_distance_equals_scipy(count: int, scale: float) -> None:
    left, right = exponential(count, scale, 3), exponential(150, 1.0, 4)
    low, high = float(torch.cat([left, right]).min()), float(torch.cat([left, right]).max())
    grid = np.linspace(low, high, 1000)
    densities = [gaussian_kde(sample.numpy())(grid) for sample in (left, right)]
    expected = float(jensenshannon(*densities))
    assert jensen_shannon_distance(left, right) == pytest.approx(expected, abs=1e-6)


def test_distance_at_its_ends() -> None:
    ramp = torch.linspace(0, 1, 50)
    assert jensen_shannon_distance(ramp, ramp) == pytest.approx(0.0, abs=1e-7)
    assert jensen_shannon_distance(torch.zeros(20), torch.zeros(30)) == 0.0
    apart = jensen_shannon_distance(torch.zeros(20), torch.full((20,), 9.0))
    assert apart == pytest.approx(math.sqrt(math.log(2)), abs=1e-6)
    assert jensen_shannon_distance(ramp, ramp + 0.5) == pytest.approx(
        jensen_shannon_distance(ramp + 0.5, ramp), abs=1e-9
    )


def test_losses_that_cannot_be_used() -> None:
    good = torch.linspace(0, 1, 50)
    with pytest.raises(DataError, match=r"unseen losses: expected at least 10 .* found 9"):
        forgetting_score(good, good[:9])
    broken = good.clone()
    broken[3] = torch.nan
    with pytest.raises(DataError, match=r"forget losses: .* found NaN"):
        forgetting_score(broken, good)
    with pytest.raises(DataError, match="left losses"):
        jensen_shannon_distance(good[:2], good)


@pytest.mark.slow
def test_the_first_import_of_scikit_learn_draws_nothing_from_the_caller() -> None:
    code = (
        "import random, sys, torch; from forgetkit.membership import forgetting_score; "
        "random.seed(0); assert 'sklearn' not in sys.modules; state = random.getstate(); "
        "forgetting_score(torch.rand(20), torch.rand(20)); assert random.getstate() == state"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
