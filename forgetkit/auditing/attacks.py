"""Membership attacks on outputs, and how well a score tells members from others. Pure functions.

Scores are higher for samples that look like members. Everything is float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from forgetkit.errors import DataError

Protocol: TypeAlias = Literal["ten-fold", "scrub", "gli"]
LARGEST_LOSS = 400.0
"""Losses are cut here: in float64 a probability below exp(-400) carries no more information."""
FEWEST = 10
"""Samples that each group must have: a tenth of both is held out, stratified."""
SMALL_RATES = (0.01, 0.001)
"""False positive rates at which the true one is always told."""


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy of each row in nats, (samples,); a probability of 0 adds nothing.

    Args:
        log_probs: (samples, classes), -inf allowed.
    """
    probs = log_probs.exp()
    return -torch.where(probs > 0, probs * log_probs, 0.0).sum(dim=1)


def modified_entropy(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return -(1 - p_y) log p_y - sum over k != y of p_k log(1 - p_k), in nats, (samples,).

    Args:
        log_probs: (samples, classes).
        labels: (samples,) true classes.

    Source: Song and Mittal, USENIX Security 2021, as used by SalUn.

    Differences: SalUn's code takes whole columns where it means one entry of each row.
    """
    # Rounding may lift a probability to 1, where log(1 - p) has no value but its factor is 0.
    lowest = torch.finfo(torch.float64).tiny
    other = torch.log1p(-log_probs.exp()).clamp(min=-LARGEST_LOSS)
    own = labels[:, None]
    p_y = log_probs.gather(1, own)[:, 0]
    rest = -(log_probs.exp() * other)
    rest = rest.scatter(1, own, 0.0).sum(dim=1)
    return -(1 - p_y.exp()).clamp(min=lowest) * p_y.clamp(min=-LARGEST_LOSS) + rest


def renormalised(log_probs: Tensor, blocked: Tensor) -> Tensor:
    """Return log-probabilities over the classes that are not blocked; blocked ones get -inf.

    Args:
        log_probs: (samples, classes), or logits.
        blocked: boolean, (classes,) or (samples, classes).

    Raises:
        DataError: no class is left.
    """
    if bool(blocked.all(dim=-1).any()):
        raise DataError(
            "blocked: expected at least one class that is kept, found none; an attack on the other "
            "classes needs a model with more classes than are forgotten"
        )
    return log_probs.masked_fill(blocked, -torch.inf).log_softmax(dim=1)


def blocked_mask(labels: Tensor, forgotten: Sequence[int], classes: int) -> Tensor:
    """Return which classes are left out for each sample: its own and the forgotten, (n, classes).

    Args:
        labels: (samples,) true classes.
        forgotten: class indices.
        classes: width of the logits.
    """
    blocked = torch.nn.functional.one_hot(labels, classes).bool()
    blocked[:, list(forgotten)] = True
    return blocked


def balanced_rows(members: int, others: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows of both groups, cut at random to the size of the smaller one, in order."""
    generator = Generator().manual_seed(seed)
    size = min(members, others)
    first = torch.randperm(members, generator=generator)[:size].sort().values
    return first, torch.randperm(others, generator=generator)[:size].sort().values


def matched_rows(members: Tensor, others: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows of both groups, equally many of each class, cut at random class by class.

    Groups that hold the classes in other shares differ for a model that saw neither of them.

    Args:
        members: (samples,) class of each.
        others: the same of the other group; a class that only one of them has gives no row.
        seed: of the draws.

    Returns:
        (rows,) of either group, classes in the same order.
    """
    generator = Generator().manual_seed(seed)
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label in members.unique().tolist():
        places = [(group == label).nonzero()[:, 0] for group in (members, others)]
        size = min(map(len, places))
        for found, place in zip(rows, places, strict=True):
            drawn = torch.randperm(len(place), generator=generator)[:size].sort().values
            found.append(place[drawn])
    empty = torch.zeros(0, dtype=torch.long)
    return torch.cat([*rows[0], empty]), torch.cat([*rows[1], empty])


def auc(members: Tensor, others: Tensor) -> float:
    """Return the area under the ROC curve of a score; ties count one half.

    Args:
        members: (samples,) scores of members.
        others: (samples,) scores of samples that were not trained on.

    Raises:
        DataError: a group is empty or holds NaN.
    """
    from sklearn.metrics import roc_auc_score

    scores, labels = _joined(members, others)
    return float(roc_auc_score(labels.numpy(), scores.numpy()))


def roc(members: Tensor, others: Tensor, points: int = 200) -> tuple[list[float], list[float]]:
    """Return (false positive rates, true positive rates), thinned to about ``points``.

    Longer curves keep the largest true positive rate at false positive rates that are evenly
    spaced on a logarithmic axis, from one false alarm on, and at 0, 0.1 % and 1 %.
    """
    from sklearn.metrics import roc_curve

    scores, labels = _joined(members, others)
    false, true, _ = roc_curve(labels.numpy(), scores.numpy(), drop_intermediate=False)
    kept = list(range(len(false)))
    if len(false) > points:
        spaced = torch.logspace(-math.log10(len(others)), 0, points, dtype=torch.float64)
        rates = torch.cat([torch.tensor([0.0, *SMALL_RATES], dtype=torch.float64), spaced])
        last = torch.searchsorted(torch.as_tensor(false), rates + 1e-12, right=True) - 1
        kept = sorted({0, *last.tolist(), len(false) - 1})
    return [float(false[i]) for i in kept], [float(true[i]) for i in kept]


def tpr_at(members: Tensor, others: Tensor, rate: float) -> float | str:
    """Return the largest true positive rate whose false positive rate is at most ``rate``.

    A rate below one over the number of non-members cannot be measured: then the answer is a
    sentence that says how many are needed. ``rate=0`` is always answered.
    """
    from sklearn.metrics import roc_curve

    if rate * len(others) < 1.0 - 1e-9 and rate > 0:
        return f"n too small: {len(others)} non-members, needs {round(1 / rate)}"
    scores, labels = _joined(members, others)
    false, true, _ = roc_curve(labels.numpy(), scores.numpy(), drop_intermediate=False)
    return float(true[false <= rate + 1e-12].max())


def bootstrap_auc(
    pairs: Sequence[tuple[Tensor, Tensor]], *, resamples: int = 1000, seed: int = 0
) -> Tensor:
    """Return AUCs of bootstrap resamples, (pairs, resamples).

    All pairs are scores of the same samples in the same order (one pair a model) and are
    resampled together, so that differences between rows have the right spread.

    Args:
        pairs: (scores of members, scores of others) for each model.
        resamples: number of resamples of both groups.
        seed: of the resampling.
    """
    generator = Generator().manual_seed(seed)
    sizes = (len(pairs[0][0]), len(pairs[0][1]))
    found = torch.empty(len(pairs), resamples, dtype=torch.float64)
    ranked = [_levels(members, others) for members, others in pairs]
    for at in range(resamples):
        m, n = (
            torch.bincount(
                torch.randint(size, (size,), generator=generator), minlength=size
            ).double()
            for size in sizes
        )
        for row, (member_level, other_level, levels) in enumerate(ranked):
            above = torch.zeros(levels, dtype=torch.float64).index_add_(0, member_level, m)
            below = torch.zeros(levels, dtype=torch.float64).index_add_(0, other_level, n)
            wins = above * (below.cumsum(0) - 0.5 * below)
            found[row, at] = wins.sum() / (sizes[0] * sizes[1])
    return found


def interval(values: Tensor) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles."""
    low, high = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def attack_accuracy(
    members: Tensor, others: Tensor, *, protocol: Protocol = "ten-fold", seed: int = 0
) -> float:
    """Return how often a logistic regression calls members and others by their name.

    Groups should be of equal size; then this is the balanced accuracy as well. Identical groups
    give less than 0.5: each held-out value has its twin with the other label among the training
    values. Read the AUC beside it.

    Args:
        members: (samples,) one feature a sample, or (samples, features).
        others: the same for samples that were not trained on.
        protocol: ``"ten-fold"``: stratified ten-fold cross-validation (SULI); ``"scrub"``: five
            shuffle splits that hold out a tenth; ``"gli"``: ten of these with the splits of its
            code (``random_state=0`` whatever the seed).
        seed: of the splits.

    Raises:
        DataError: a group has fewer than 10 samples, or a value is not finite.

    Source: SULI, section 5; SCRUB, appendix; Guided Loss-Increasing (supplement) and its code.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import (
        StratifiedKFold,
        StratifiedShuffleSplit,
        cross_val_score,
    )

    values, labels = _joined(members, others, FEWEST)
    splits = {
        "ten-fold": StratifiedKFold(10, shuffle=True, random_state=seed),
        "scrub": StratifiedShuffleSplit(n_splits=5, random_state=seed),
        "gli": StratifiedShuffleSplit(n_splits=10, test_size=0.1, random_state=0),
    }[protocol]
    columns = values.reshape(len(values), -1).numpy()
    shares = cross_val_score(LogisticRegression(), columns, labels.numpy(), cv=splits)
    return float(shares.mean())


def cross_scores(
    members: Tensor, others: Tensor, *, folds: int = 5, seed: int = 0, paired: bool = False
) -> tuple[Tensor, Tensor]:
    """Return held-out log-odds of membership from a logistic regression, for both groups.

    Features are standardised inside every fold.

    Args:
        members: (samples, features).
        others: (samples, features).
        folds: of the cross-validation.
        seed: of the folds.
        paired: row i of both groups is the same sample under two models; then both rows stay in
            one fold, as a sample must not be in the training and the held-out part.

    Raises:
        DataError: a group has fewer samples than folds, or a value is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, labels = _joined(members, others, folds)
    rows = torch.arange(len(values))
    groups = rows % len(members) if paired else rows
    found = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        values.numpy(), labels.numpy(), groups=groups.numpy(), method="decision_function",
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=seed),
    )  # fmt: skip
    scores = torch.as_tensor(found, dtype=torch.float64)
    return scores[: len(members)], scores[len(members) :]


def called_members(
    trained: Tensor, unseen: Tensor, asked: Tensor, *, classifier: str = "logistic"
) -> Tensor:
    """Return which samples an attack calls members, boolean (samples,).

    The attack learns from samples that surely were and surely were not trained on.

    Args:
        trained: (samples, features) of kept training samples.
        unseen: (samples, features) of test samples.
        asked: (samples, features) of the samples in question.
        classifier: ``"logistic"`` (balanced logistic regression) or ``"svc"`` (RBF kernel, C = 3).

    Raises:
        DataError: a group is empty, or a value is not finite.

    Source: Foster et al., AAAI 2024 (logistic regression on entropy); Chundawat et al., AAAI 2023
        (SVC on entropy); Fan et al., ICLR 2024 (SVC with C = 3).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    values, labels = _joined(trained, unseen)
    if classifier == "svc":
        model = SVC(C=3.0, kernel="rbf", gamma="auto")
    else:
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit(values.numpy(), labels.numpy())
    return torch.as_tensor(model.predict(asked.double().numpy())) == 1


def class_order(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return for each class all classes by falling cosine of the class means, (classes, classes).

    A class without samples comes last.

    Args:
        features: (samples, dim).
        labels: (samples,).
        classes: number of classes.
    """
    means = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    means.index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=classes).double()
    means = torch.nn.functional.normalize(means / counts.clamp(min=1)[:, None], dim=1)
    cosines = (means @ means.T).masked_fill(counts == 0, -2.0)
    return cosines.argsort(dim=1, descending=True, stable=True)


def neighbour_profile(log_probs: Tensor, blocked: Tensor, order: Tensor) -> Tensor:
    """Return probabilities over the kept classes, nearest class first.

    Args:
        log_probs: (samples, classes).
        blocked: (samples, classes) boolean, the same number for each sample.
        order: (samples, classes) classes by falling similarity to the sample's own class.

    Returns:
        (samples, kept classes), each row sums to 1.
    """
    probs = renormalised(log_probs, blocked).exp().gather(1, order)
    kept = ~blocked.gather(1, order)
    return probs[kept].reshape(len(probs), -1)


def population_attack(
    seen: Tensor,
    unseen: Tensor,
    held_seen: Tensor,
    held_unseen: Tensor,
    *,
    booster: str = "xgboost",
    seed: int = 0,
) -> object:
    """Return a boosted-tree classifier that tells rows of models that saw D_f from the others.

    Args:
        seen: (rows, columns) of models that were trained on D_f.
        unseen: (rows, columns) of models that were not.
        held_seen: rows of other models, on which the number of trees is chosen (xgboost only).
        held_unseen: the same for models that did not see D_f.
        booster: ``"xgboost"`` (the paper's) or ``"histogram"`` (scikit-learn's, which has no
            row sampling and another regularisation: not the paper's attack).
        seed: of the trees.

    Returns:
        A fitted classifier with ``predict_proba``.

    Source: Hoang et al., WACV 2024 (PGU), section 4.1 and its parameters.
    """
    rows, labels = _joined(seen, unseen)
    if booster == "histogram":
        from sklearn.ensemble import HistGradientBoostingClassifier

        trees = HistGradientBoostingClassifier(
            learning_rate=0.2, max_depth=10, l2_regularization=10.0, random_state=seed
        )
        fitted: object = trees.fit(rows.numpy(), labels.numpy())
        return fitted
    from xgboost import XGBClassifier

    held, held_labels = _joined(held_seen, held_unseen)
    boosted = XGBClassifier(
        learning_rate=0.2, max_depth=10, subsample=0.8, reg_lambda=10, min_child_weight=0.1,
        early_stopping_rounds=10, eval_metric="auc", random_state=seed, n_jobs=1,
    )  # fmt: skip
    boosted.fit(
        rows.numpy(), labels.numpy(), eval_set=[(held.numpy(), held_labels.numpy())], verbose=False
    )
    answer: object = boosted
    return answer


def _levels(members: Tensor, others: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return ranks of both groups among the distinct scores, and how many of these there are."""
    values, level = torch.unique(torch.cat([members, others]).double(), return_inverse=True)
    return level[: len(members)], level[len(members) :], len(values)


def _joined(members: Tensor, others: Tensor, fewest: int = 1) -> tuple[Tensor, Tensor]:
    """Return both groups as one and their labels, checked."""
    for name, group in (("members", members), ("non-members", others)):
        if len(group) < fewest or not bool(torch.isfinite(group).all()):
            what = f"{len(group)}" if len(group) < fewest else "NaN or infinity among them"
            raise DataError(
                f"{name}: expected at least {fewest} finite scores, found {what}; give more "
                "samples, and check the model's weights when a score is not finite"
            )
    values = torch.cat([members.detach().double().cpu(), others.detach().double().cpu()])
    labels = torch.cat([torch.ones(len(members)), torch.zeros(len(others))]).long()
    return values, labels
