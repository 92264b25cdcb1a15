"""Pure functions of the membership attacks: check values, and agreement with scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Generator, Tensor

from forgetkit.auditing.attacks import (
    attack_accuracy,
    auc,
    balanced_rows,
    blocked_mask,
    bootstrap_auc,
    called_members,
    class_order,
    cross_scores,
    entropy,
    interval,
    modified_entropy,
    neighbour_profile,
    renormalised,
    roc,
    tpr_at,
)
from forgetkit.auditing.likelihood import (
    average_probability,
    gaussian,
    gaussians,
    likelihood_ratio,
    logit_confidence,
    membership_probability,
    pooled_deviation,
    relative_score,
    standard_score,
)
from forgetkit.errors import DataError

RAMP = torch.arange(20, dtype=torch.float64) * 0.01


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_auc_and_rates_pinned() -> None:
    members, others = double(0.9, 0.6), double(0.7, 0.3)
    assert auc(members, others) == pytest.approx(0.75)
    assert tpr_at(members, others, 0.0) == pytest.approx(0.5)
    assert tpr_at(members, others, 0.5) == pytest.approx(1.0)


def test_a_rate_below_one_sample_is_not_made_up() -> None:
    members = torch.rand(50, dtype=torch.float64)
    assert tpr_at(members, torch.rand(99), 0.01) == "n too small: 99 non-members, needs 100"
    assert isinstance(tpr_at(members, torch.rand(100), 0.01), float)
    assert tpr_at(members, torch.rand(999), 0.001) == "n too small: 999 non-members, needs 1000"
    assert isinstance(tpr_at(members, torch.rand(1000), 0.001), float)


@pytest.mark.parametrize("seed", range(3))
def test_curves_agree_with_scikit_learn(seed: int) -> None:
    draws = Generator().manual_seed(seed)
    members = torch.randint(0, 40, (300,), generator=draws).double() + 5
    others = torch.randint(0, 40, (200,), generator=draws).double()
    labels = [1] * 300 + [0] * 200
    scores = torch.cat([members, others])
    assert auc(members, others) == pytest.approx(roc_auc_score(labels, scores))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert tpr_at(members, others, 0.05) == pytest.approx(true[false <= 0.05].max())
    ours = roc(members, others)
    assert (ours[0][0], ours[1][0]) == (0.0, 0.0)
    assert (ours[0][-1], ours[1][-1]) == (1.0, 1.0)


@pytest.mark.parametrize("members_found", [0.02, 0.5])
def test_a_thinned_curve_keeps_few_false_alarms(members_found: float) -> None:
    draws = Generator().manual_seed(0)
    others = torch.randn(5000, generator=draws, dtype=torch.float64)
    members = torch.randn(5000, generator=draws, dtype=torch.float64)
    members[: int(5000 * members_found)] += 5
    false, true = roc(members, others)
    assert len(false) <= 210
    assert min(rate for rate in false if rate > 0) == 1 / 5000
    for rate in (0.0, 0.001, 0.01):
        drawn = max(t for f, t in zip(false, true, strict=True) if f <= rate + 1e-12)
        assert drawn == tpr_at(members, others, rate)
    whole = roc_curve(
        [1] * 5000 + [0] * 5000, torch.cat([members, others]), drop_intermediate=False
    )
    assert {*zip(false, true, strict=True)} <= {*zip(whole[0], whole[1], strict=True)}
    assert (false[0], true[0], false[-1], true[-1]) == (0.0, 0.0, 1.0, 1.0)


def test_a_short_curve_is_whole() -> None:
    assert roc(RAMP[:4], RAMP[:4]) == ([0.0, 0.25, 0.5, 0.75, 1.0],) * 2


def test_the_bootstrap_equals_a_literal_one_and_pairs_models() -> None:
    draws = Generator().manual_seed(0)
    pair = (torch.rand(12, generator=draws).round(decimals=1), torch.rand(9, generator=draws))
    found = bootstrap_auc([pair, pair], resamples=20, seed=3)
    assert torch.equal(found[0], found[1])
    again = Generator().manual_seed(3)
    for at in range(20):
        m = torch.randint(12, (12,), generator=again)
        n = torch.randint(9, (9,), generator=again)
        assert float(found[0, at]) == pytest.approx(auc(pair[0][m], pair[1][n]), abs=1e-12)
    low, high = interval(bootstrap_auc([pair], seed=0)[0])
    assert low < auc(*pair) < high


def test_loss_attack_pinned() -> None:
    for protocol in ("ten-fold", "scrub"):
        assert attack_accuracy(-RAMP, -(5 + RAMP), protocol=protocol) == 1.0
    twice = torch.arange(10, dtype=torch.float64).repeat(2)
    assert attack_accuracy(-twice, -(twice + 5)) == pytest.approx(0.75)
    assert attack_accuracy(-twice, -(twice + 5), protocol="scrub") == pytest.approx(0.75)
    assert auc(-twice, -(twice + 5)) == pytest.approx(0.875)


def test_identical_lists_fall_below_one_half() -> None:
    assert attack_accuracy(-RAMP, -RAMP) == pytest.approx(0.35)
    assert attack_accuracy(-RAMP, -RAMP, protocol="gli") == pytest.approx(0.325)
    assert attack_accuracy(-RAMP, -RAMP, protocol="scrub") < 0.5
    assert auc(-RAMP, -RAMP) == pytest.approx(0.5)


def test_bad_groups_get_a_sentence() -> None:
    with pytest.raises(DataError, match="members: expected at least 10 finite scores, found 3"):
        attack_accuracy(torch.zeros(3), torch.zeros(20))
    with pytest.raises(DataError, match=r"non-members: .* found NaN or infinity"):
        auc(torch.zeros(3), torch.tensor([math.nan]))


def test_entropies() -> None:
    log_probs = double(0.5, 0.25, 0.25).log()[None]
    assert float(entropy(log_probs)) == pytest.approx(1.5 * math.log(2))
    literal = -(1 - 0.25) * math.log(0.25) - 0.5 * math.log(0.5) - 0.25 * math.log(0.75)
    assert float(modified_entropy(log_probs, torch.tensor([1]))) == pytest.approx(literal)
    huge = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16).double().log_softmax(1)
    for label in (0, 1):
        assert bool(torch.isfinite(modified_entropy(huge, torch.tensor([label]))).all())
    assert float(entropy(huge)) == pytest.approx(0.0, abs=1e-12)


def test_kept_probabilities_pinned() -> None:
    log_probs = double(0.6, 0.3, 0.1).log()[None]
    kept = renormalised(log_probs, torch.tensor([True, False, False])).exp()
    assert kept[0].tolist() == pytest.approx([0.0, 0.75, 0.25])
    with pytest.raises(DataError, match="expected at least one class that is kept"):
        renormalised(log_probs, torch.tensor([True, True, True]))


def test_neighbours_come_nearest_first() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.1]])
    order = class_order(features, torch.tensor([0, 1, 2]), 3)
    assert order[0].tolist() == [0, 2, 1]
    log_probs = double(0.6, 0.3, 0.1).log()[None]
    blocked = blocked_mask(torch.tensor([0]), [0], 3)
    found = neighbour_profile(log_probs, blocked, order[:1])
    assert found[0].tolist() == pytest.approx([0.25, 0.75])


def test_paired_rows_of_identical_models_say_nothing() -> None:
    rows = torch.rand(40, 3, generator=Generator().manual_seed(0))
    members, others = cross_scores(rows, rows, paired=True)
    assert auc(members, others) == pytest.approx(0.5, abs=1e-9)
    apart = cross_scores(rows, rows + 5, paired=True)
    assert auc(*apart) == 0.0 or auc(*apart) == 1.0


@pytest.mark.parametrize("classifier", ["logistic", "svc"])
def test_called_members_follow_the_nearer_group(classifier: str) -> None:
    trained, unseen = RAMP[:, None], 3 + RAMP[:, None]
    asked = double(0.1, 3.1)[:, None]
    found = called_members(trained, unseen, asked, classifier=classifier)
    assert found.tolist() == [True, False]


def test_groups_are_cut_to_one_size() -> None:
    left, right = balanced_rows(7, 4, 0)
    assert len(left) == len(right) == 4
    assert torch.equal(balanced_rows(7, 4, 0)[0], left)


def test_lira_pinned() -> None:
    assert float(logit_confidence(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))) == (
        pytest.approx(0.686738, abs=1e-6)
    )
    inside = torch.logit(double(0.9, 0.95, 0.99))[:, None]
    outside = torch.logit(double(0.5, 0.6, 0.7))[:, None]
    assert inside[:, 0].tolist() == pytest.approx([2.197225, 2.944439, 4.595120], abs=1e-6)
    target = torch.logit(double(0.8))
    assert float(target) == pytest.approx(1.386294, abs=1e-6)
    zero = gaussian(inside), gaussian(outside)
    assert [float(d) for _, d in zero] == pytest.approx([1.001830, 0.346014], abs=1e-6)
    ratio = likelihood_ratio(target, *zero)
    assert float(ratio) == pytest.approx(1.133633, abs=1e-6)
    assert float(membership_probability(ratio)) == pytest.approx(0.756509, abs=1e-6)
    one = likelihood_ratio(target, gaussian(inside, ddof=1), gaussian(outside, ddof=1))
    assert float(membership_probability(one)) == pytest.approx(0.599021, abs=1e-6)
    assert float(one) == pytest.approx(0.401387, abs=1e-6)
    assert float(pooled_deviation(inside, outside)) == pytest.approx(0.749463, abs=1e-6)
    pooled = likelihood_ratio(target, *gaussians(inside, outside, pooled=True))
    assert float(pooled) == pytest.approx(-2.241968, abs=1e-6)


def test_lira_needs_models_and_survives_agreement() -> None:
    with pytest.raises(DataError, match="at least 2 reference models, found 1"):
        gaussian(torch.zeros(1, 3), ddof=1)
    same = torch.zeros(20, 3, dtype=torch.float64)
    assert bool(torch.isfinite(standard_score(double(1, 0, -1), gaussian(same))).all())
    both = gaussians(same, same, pooled=False)
    assert bool(torch.isfinite(likelihood_ratio(double(1, 0, -1), *both)).all())


def test_confidence_is_finite_for_saturated_logits() -> None:
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert float(logit_confidence(logits, torch.tensor([0]))) == pytest.approx(120000, rel=1e-2)


def test_rmia_pinned() -> None:
    own = average_probability(double(0.5, 0.7)[:, None], 0.3)
    assert float(own) == pytest.approx(0.74)
    ratio = double(0.9) / own
    assert float(ratio) == pytest.approx(1.216216, abs=1e-6)
    out = torch.tensor([[0.9, 0.5, 0.4, 0.5], [0.9, 0.5, 0.2, 0.6]], dtype=torch.float64)
    mean = average_probability(out, 0.3)
    assert mean.tolist() == pytest.approx([0.935, 0.675, 0.545, 0.7075])
    ratios = double(0.9, 0.6, 0.2, 0.95) / mean
    assert ratios.tolist() == pytest.approx([0.962567, 0.888889, 0.366972, 1.342756], abs=1e-6)
    assert float(relative_score(ratio, ratios)) == pytest.approx(0.75)


def test_rmia_counts_strictly_greater_ratios() -> None:
    found = relative_score(double(1.0, 1.1), double(1.0, 1.0, 0.5, 2.0))
    assert found.tolist() == [0.25, 0.75]


def test_far_scores_are_still_ranked() -> None:
    outside = (torch.full((2,), -3.0).double(), torch.ones(2).double())
    first, second = standard_score(double(10, 12), outside).tolist()
    assert second > first > 8  # where the distribution function is 1.0 for both
