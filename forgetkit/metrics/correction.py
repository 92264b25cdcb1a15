"""Whether wrongly labelled samples are predicted with the right label now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from forgetkit.auditing.evidence import (
    WRONG_LABELS,
    Evidence,
    Missing,
    NotApplicable,
    Outputs,
)
from forgetkit.auditing.intervals import compared, wilson
from forgetkit.auditing.readings import (
    by_role,
    controls,
    hits,
    outputs,
    retrained_outputs,
    roles_with,
    single_label,
    tests_given,
    together,
)
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class Correction(Metric):
    """Share of the corrected samples that still get the wrong label they were trained with.

        E = (1 / |D_f|) sum_{(x, y_old) in D_f} [argmax_c z_c(x) = y_old]

    Good is the rate at which unseen samples of the true class get that label; it stands in the
    details, as do the share that gets the new label, the accuracy on clean test samples and what
    the kept samples lost. For depoisoning with unknown right labels only E and the clean accuracy
    are defined.

    Verdict: ``residual`` when surely more old labels are repeated than by every retrained model,
        ``over-forgotten`` when surely fewer.

    Source: Hoang et al., "Learn to Unlearn for Deep Neural Networks", WACV 2024, arXiv:2312.04095.

    Differences: the paper's number is the accuracy on clean test samples; the headline is E,
        because that accuracy hardly moves when few samples were wrong.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="correction",
        title="Memorised errors",
        group="accuracy",
        level="quick",
        range="[0, 1], share of the corrected samples",
        good="the rate at which unseen samples of the true class get that label",
        bad="The model still repeats the wrong labels that it was trained with.",
        needs="a relabel or depoison request and its forget set; a retrained model for a verdict",
        cost="nothing beyond the collected outputs",
        source="Hoang et al. 2024, WACV",
        link="https://arxiv.org/abs/2312.04095",
        about="How often corrected samples are predicted with their old wrong label, and the new.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Compare predictions on the forget set with the old and the new labels."""
        if evidence.goal not in WRONG_LABELS:
            raise NotApplicable(
                "is about wrong labels, and this request is about forgetting samples"
            )
        own = hits(single_label(outputs(evidence, "unlearned", "forget")))
        shares = by_role(evidence, "forget", lambda found: float(hits(found).mean()))
        others = [hits(found) for found in retrained_outputs(evidence, "forget")]
        details: dict[str, object] = {"old_label": dict(shares)}
        new = evidence.sets["forget"].new_labels if "forget" in evidence.sets else None
        if new is not None:
            details["new_label"] = by_role(
                evidence, "forget", lambda found: float((found.predicted == new).double().mean())
            )
            details["unseen_old_label"] = _unseen_rate(evidence, new)
        details |= _clean(evidence)
        return self.finding(
            shares["unlearned"],
            samples=len(own),
            interval=wilson(float(own.sum()), len(own)),
            controls=controls(shares),
            details=details,
            verdict=compared(own, others, seed=evidence.seed),
            note="" if new is not None else "the right labels are not known",
        )


def _unseen_rate(evidence: Evidence, new: Tensor) -> float | None:
    """Return how often unseen samples of the true classes get the old labels.

    Each corrected sample counts once, with the share of test samples of its true class that are
    predicted with its old label. ``None`` when a class has no test sample.
    """
    old = evidence.of("unlearned", "forget").labels
    try:
        unseen = together(evidence, "unlearned", tests_given(evidence))
    except Missing:
        return None
    if not bool(torch.isin(new, unseen.labels).all()):
        return None
    rates = [
        float((unseen.predicted[unseen.labels == right] == wrong).double().mean())
        for wrong, right in zip(old.tolist(), new.tolist(), strict=True)
    ]
    return sum(rates) / len(rates)


def _clean(evidence: Evidence) -> dict[str, object]:
    """Return the accuracy on clean test samples, and what the kept samples lost."""
    found: dict[str, object] = {}
    try:
        splits = tests_given(evidence)
    except Missing:
        splits = ()
    if splits:
        found["clean_test"] = {
            role: _accuracy(together(evidence, role, splits))
            for role in roles_with(evidence, *splits)
        }
    if evidence.has("unlearned", "retain") and evidence.has("original", "retain"):
        before, after = (_accuracy(evidence.of(r, "retain")) for r in ("original", "unlearned"))
        found["damage"] = before - after
    return found


def _accuracy(found: Outputs) -> float:
    return float(hits(found).mean())
