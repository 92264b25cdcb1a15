"""Which samples a membership attack compares, and how its scores are reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetkit.audit.attacks import (
    FEWEST,
    LARGEST_LOSS,
    auc,
    balanced_rows,
    bootstrap_auc,
    entropy,
    interval,
    renormalised,
    roc,
    tpr_at,
)
from forgetkit.audit.evidence import Evidence, Missing, Outputs, Role, Subject
from forgetkit.audit.excess import roles_with, unlike_retrain
from forgetkit.metric import Verdict


@dataclass(frozen=True)
class Groups:
    """The same members and non-members for every model.

    Args:
        members: rows of the forget set.
        others: rows of the test samples of the same classes, as many.
    """

    members: Tensor
    others: Tensor

    def of(self, subject: Subject) -> tuple[Outputs, Outputs]:
        """Return a model's outputs on both groups.

        Raises:
            Missing: they are not at hand.
        """
        if any(split not in subject.outputs for split in ("forget", "test_forget")):
            raise Missing("needs the samples to forget and test samples of the same classes")
        return (
            subject.outputs["forget"].take(self.members),
            subject.outputs["test_forget"].take(self.others),
        )


def groups(evidence: Evidence, fewest: int = FEWEST) -> Groups:
    """Return members and as many non-members, drawn with the seed.

    Raises:
        Missing: a set is not at hand or too small.
    """
    sizes = [len(evidence.of("unlearned", split)) for split in ("forget", "test_forget")]
    if min(sizes) < fewest:
        raise Missing(
            f"needs at least {fewest} samples to forget and as many test samples of the same "
            f"classes, found {sizes[0]} and {sizes[1]}"
        )
    return Groups(*balanced_rows(sizes[0], sizes[1], evidence.seed))


def log_probs_of(evidence: Evidence, outputs: Outputs) -> Tensor:
    """Return log-probabilities; over the kept classes when the forgotten outputs are masked."""
    if not evidence.head_masked:
        return outputs.log_probs
    blocked = torch.zeros(evidence.num_classes, dtype=torch.bool)
    blocked[list(evidence.forget_classes)] = True
    if bool(blocked.all()):
        raise Missing("needs at least one class that is kept")
    return renormalised(outputs.logits.double(), blocked)


def loss_score(evidence: Evidence, outputs: Outputs) -> Tensor:
    """Return minus the loss, cut at 400; minus the entropy over kept classes for a masked head."""
    if evidence.head_masked:
        return -entropy(log_probs_of(evidence, outputs))
    return -outputs.losses.clamp(max=LARGEST_LOSS)


@dataclass(frozen=True)
class Attacked:
    """What an attack found for every model.

    Args:
        auc: area under the ROC curve by role.
        intervals: 95 % bootstrap intervals by role.
        difference: 95 % interval of the AUC minus that under the retrained model, or ``None``.
        verdict: by the rule of ``forgetkit.audit.excess.unlike_retrain``.
        rates: true positive rate at small false positive rates, by role; a sentence where there
            are too few samples.
        curves: ROC curves by role: (false positive rates, true positive rates).
        note: what limits the verdict.
    """

    auc: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    difference: tuple[float, float] | None
    verdict: Verdict
    rates: Mapping[str, Mapping[str, float | str]]
    curves: Mapping[str, tuple[list[float], list[float]]]
    note: str

    def details(self) -> dict[str, object]:
        """Return the numbers of a report."""
        return {
            "auc": dict(self.auc),
            "intervals": {role: list(ends) for role, ends in self.intervals.items()},
            "difference_to_retrained": None if self.difference is None else list(self.difference),
            "true_positive_rate": {role: dict(rates) for role, rates in self.rates.items()},
            "roc": {role: {"false": f, "true": t} for role, (f, t) in self.curves.items()},
        }

    def controls(self) -> dict[str, float]:
        """Return the AUC of the other models."""
        return {role: value for role, value in self.auc.items() if role != "unlearned"}


def attacked(
    scores: Mapping[Role, tuple[Tensor, Tensor]], *, resamples: int = 1000, seed: int = 0
) -> Attacked:
    """Return AUC, intervals, rates and verdict from scores of the same samples by model.

    Args:
        scores: (scores of members, scores of others) by role, ``"unlearned"`` among them.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    roles = list(scores)
    drawn: dict[Role, Tensor] = dict(
        zip(
            roles, bootstrap_auc(list(scores.values()), resamples=resamples, seed=seed), strict=True
        )
    )
    intervals: dict[str, tuple[float, float]] = {r: interval(v) for r, v in drawn.items()}
    works = None
    if "original" in intervals:
        low, high = intervals["original"]
        works = not low <= 0.5 <= high
    verdict, difference = unlike_retrain(drawn["unlearned"], drawn.get("retrained"), works)
    notes = []
    if "retrained" not in scores:
        notes.append("no retrained model to compare with")
    elif not intervals["retrained"][0] <= 0.5 <= intervals["retrained"][1]:
        notes.append(
            "the attack tells the groups apart under the retrained model too: the test samples "
            "differ from the forget samples in more than membership"
        )
    if works is False:
        notes.append("the attack finds nothing in the original either, so it shows little")
    return Attacked(
        {role: auc(*pair) for role, pair in scores.items()}, intervals, difference, verdict,
        {role: _rates(*pair) for role, pair in scores.items()},
        {role: roc(*pair) for role, pair in scores.items()}, "; ".join(notes),
    )  # fmt: skip


def by_role(
    evidence: Evidence, chosen: Groups, score: Callable[[Outputs], Tensor]
) -> dict[Role, tuple[Tensor, Tensor]]:
    """Return scores of members and others under every model that has both sets."""
    found: dict[Role, tuple[Tensor, Tensor]] = {}
    for role in roles_with(evidence, "forget", "test_forget"):
        members, others = chosen.of(evidence.subjects[role])
        found[role] = (score(members), score(others))
    return found


def _rates(members: Tensor, others: Tensor) -> dict[str, float | str]:
    wanted: Sequence[tuple[str, float]] = (("0.01", 0.01), ("0.001", 0.001))
    return {name: tpr_at(members, others, rate) for name, rate in wanted}
