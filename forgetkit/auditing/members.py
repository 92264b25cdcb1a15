"""Which samples a membership attack compares, and how its scores are reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forgetkit.auditing.attacks import (
    FEWEST,
    LARGEST_LOSS,
    SMALL_RATES,
    auc,
    bootstrap_auc,
    entropy,
    interval,
    matched_rows,
    renormalised,
    roc,
    tpr_at,
)
from forgetkit.auditing.evidence import WRONG_LABELS, Evidence, Missing, Outputs, Role, Subject
from forgetkit.auditing.excess import references, roles_with, unlike_retrain
from forgetkit.auditing.readings import joined, single_label, tests_given
from forgetkit.metric import Verdict


@dataclass(frozen=True)
class Groups:
    """The same members and non-members for every model.

    Args:
        members: rows of the forget set.
        others: rows of the test samples of the same classes, as many of each class.
        splits: the test sets that ``others`` counts through, one after the other.
        labels: what the others are asked about instead of their own labels, or ``None``.
    """

    members: Tensor
    others: Tensor
    splits: tuple[str, ...] = ("test_forget",)
    labels: Tensor | None = None

    def of(self, subject: Subject) -> tuple[Outputs, Outputs]:
        """Return a model's outputs on both groups.

        Raises:
            Missing: they are not at hand.
        """
        if any(split not in subject.outputs for split in ("forget", *self.splits)):
            raise Missing("needs the samples to forget and test samples of the same classes")
        others = joined([subject.outputs[split] for split in self.splits]).take(self.others)
        if self.labels is not None:
            others = replace(others, known_labels=self.labels)
        return subject.outputs["forget"].take(self.members), others


def groups(evidence: Evidence, fewest: int = FEWEST) -> Groups:
    """Return members and as many non-members of each class, drawn with the seed.

    Samples whose labels were wrong were trained on as pairs of an image and its wrong label. Such
    a pair is held against an unseen image of the right class, asked about the same wrong label.

    Raises:
        Missing: a set or its labels are not at hand, or a set is too small.
    """
    own = single_label(evidence.of("unlearned", "forget"))
    splits: tuple[str, ...] = ("test_forget",)
    classes, wrong = own.labels, None
    if evidence.goal in WRONG_LABELS:
        splits, wrong = tests_given(evidence), own.labels
        classes = _right_labels(evidence)
    tests = joined([evidence.of("unlearned", split) for split in splits])
    members, others = matched_rows(classes, single_label(tests).labels, evidence.seed)
    if len(members) < fewest:
        raise Missing(
            f"needs at least {fewest} samples to forget and as many test samples of the same "
            f"classes, found {len(members)} such pairs in {len(own)} and {len(tests)} samples"
        )
    return Groups(members, others, splits, None if wrong is None else wrong[members])


def _right_labels(evidence: Evidence) -> Tensor:
    """Return the classes that wrongly labelled samples belong to, (samples,)."""
    known = evidence.sets["forget"].new_labels if "forget" in evidence.sets else None
    if known is None:
        raise Missing(
            "holds wrong labels against unseen samples of the right class, and the right labels "
            "are not known"
        )
    return known


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
        difference: 95 % interval of the AUC minus that under the first retrained model, or
            ``None``.
        verdict: by the rule of ``forgetkit.auditing.excess.unlike_retrain``.
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
    scores: Mapping[Role, tuple[Tensor, Tensor]],
    further: Sequence[tuple[Tensor, Tensor]] = (),
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Attacked:
    """Return AUC, intervals, rates and verdict from scores of the same samples by model.

    An attack works when its AUC under the original surely differs from that under every retrained
    model. Differing from 0.5 is not enough: so it does for a model that saw neither group, where
    the groups differ in more than membership.

    Args:
        scores: (scores of members, scores of others) by role, ``"unlearned"`` among them.
        further: the same of each retrained model but the first, which has a role.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    found = bootstrap_auc([*scores.values(), *further], resamples=resamples, seed=seed)
    drawn: dict[Role, Tensor] = dict(zip(scores, found, strict=False))
    retrained = [drawn["retrained"], *found[len(scores) :]] if "retrained" in drawn else []
    intervals: dict[str, tuple[float, float]] = {r: interval(v) for r, v in drawn.items()}
    works = None
    if "original" in drawn:
        ends = [interval(drawn["original"] - other) for other in retrained or [torch.tensor(0.5)]]
        works = not any(low <= 0 <= high for low, high in ends)
    verdict, difference = unlike_retrain(drawn["unlearned"], retrained, works)
    notes = []
    if "retrained" not in scores:
        notes.append("no retrained model to compare with")
    if works is None:
        notes.append("no original to show that the attack finds anything at all")
    if "retrained" in scores and not intervals["retrained"][0] <= 0.5 <= intervals["retrained"][1]:
        notes.append(
            "the attack tells the groups apart under the retrained model too: the test samples "
            "differ from the forget samples in more than membership"
        )
    if works is False:
        beside = "no more in the original than in a retrained model"
        what = beside if "retrained" in scores else "nothing in the original either"
        notes.append(f"the attack finds {what}, so it shows little")
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
    for role in roles_with(evidence, "forget", *chosen.splits):
        members, others = chosen.of(evidence.subjects[role])
        found[role] = (score(members), score(others))
    return found


def of_further(
    evidence: Evidence, chosen: Groups, score: Callable[[Outputs], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return the same under each retrained model but the first that has both sets."""
    return [
        (score(members), score(others))
        for members, others in (
            chosen.of(one)
            for one in references(evidence)[1:]
            if all(split in one.outputs for split in ("forget", *chosen.splits))
        )
    ]


def _rates(members: Tensor, others: Tensor) -> dict[str, float | str]:
    return {str(rate): tpr_at(members, others, rate) for rate in SMALL_RATES}
