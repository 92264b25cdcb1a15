"""What another training would make of a number."""

from __future__ import annotations

import pytest
import torch

from forgetkit.auditing.intervals import compared
from forgetkit.auditing.training_spread import beyond, compared_trainings


def test_three_models_with_mean_2_and_deviation_1_reach_as_far_as_4_968() -> None:
    # t with 2 degrees of freedom at 97.5 % is 4.302653, times the root of 4 / 3
    assert beyond(2 + 4.9682, [1.0, 2.0, 3.0]) is False
    assert beyond(2 + 4.9684, [1.0, 2.0, 3.0]) is True
    assert beyond(2 - 4.9684, [1.0, 2.0, 3.0]) is True


def test_one_model_has_no_spread() -> None:
    assert beyond(5.0, [1.0]) is None
    assert beyond(5.0, []) is None


@pytest.mark.slow
@pytest.mark.parametrize("models", [2, 3, 6])
def test_one_honest_model_in_twenty_is_outside(models: int) -> None:
    drawn = torch.randn(4000, models + 1, generator=torch.Generator().manual_seed(0)).tolist()
    outside = sum(bool(beyond(own, others)) for own, *others in drawn)
    assert 0.04 < outside / 4000 < 0.06


def test_a_sure_difference_that_another_training_would_make_is_none() -> None:
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0)) / 100
    controls = [noise + level for level in (1.0, 2.0, 3.0)]
    near, far = noise + 4.0, noise + 9.0
    assert compared(near, controls) == "residual"
    assert compared_trainings(near, controls) == "as retrain"
    assert compared_trainings(far, controls) == "residual"
    assert compared_trainings(far, controls, more="over-forgotten") == "over-forgotten"
    assert compared_trainings(-far, controls) == "over-forgotten"


def test_a_model_beyond_the_interval_must_also_differ_surely() -> None:
    wide = torch.tensor([-30.0, 30.0] * 50)  # the mean is far less sure than it is far
    controls = [torch.full((100,), level) for level in (0.0, 0.1)]
    assert beyond(3.0, [0.0, 0.1]) is True
    assert compared_trainings(wide + 3.0, controls) == "as retrain"


def test_a_single_retrained_model_or_few_samples_decide_nothing() -> None:
    assert compared_trainings(torch.full((50,), 9.0), [torch.zeros(50)]) == "not decidable"
    few = [torch.zeros(5), torch.ones(5)]
    assert compared_trainings(torch.full((5,), 90.0), few) == "not decidable"
