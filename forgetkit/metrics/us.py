"""One number for a forgotten class: kept accuracy and forgotten accuracy together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from forgetkit.auditing.evidence import Evidence, NotApplicable
from forgetkit.auditing.intervals import FEWEST, percentile_interval, resampled_means, wilson
from forgetkit.auditing.readings import hidden_note, hits, outputs, roles_with, single_label
from forgetkit.losses import unlearning_score
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class UnlearningScore(Metric):
    """Kept and forgotten test accuracy in one number.

        US = (e^a_r + e^(1 - a_f) - 2) / (2 (e - 1))

    a_r and a_f are the accuracies on test samples of the kept and of the forgotten classes, which
    have one class each: among several labels a forgotten one would hardly count. 1 when
    every kept class and no forgotten class is recognised, 0.5 for a model that recognises
    everything or nothing.

    Verdict: none; it reads outputs only, and masking the class in the head makes it perfect.

    Source: Kim, Lee, Woo, "Layer Attack Unlearning", AAAI 2024, arXiv:2312.16823, Eq. 8.

    Differences: accuracies as fractions. The interval resamples both test sets; where one accuracy
        is 0 or 1, which resampling cannot change, it is from the worst to the best score within
        the Wilson intervals of both. None with fewer than ten samples of either kind.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="us",
        title="Unlearning score",
        group="score",
        level="quick",
        range="[0, 1], no unit",
        good="near 1 and near the retrained model's",
        bad="The class is still recognised, or the other classes were lost with it.",
        needs="test samples of the forgotten and of the other classes; whole classes forgotten",
        cost="nothing beyond the collected outputs",
        source="Kim, Lee, Woo 2024, AAAI, Eq. 8",
        link="https://arxiv.org/abs/2312.16823",
        about="Kept and forgotten test accuracy in one number; reads the output only.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Score every model at hand; the interval is of both test sets together."""
        if evidence.goal != "classes":
            raise NotApplicable(
                "is defined for whole classes: for single samples even a retrained model is right "
                "on other samples of their classes"
            )
        single_label(outputs(evidence, "unlearned", "test_forget"))
        splits = ("test_retain", "test_forget")
        kept, gone = (hits(outputs(evidence, "unlearned", split)) for split in splits)
        scores = {
            role: _score(*(hits(outputs(evidence, role, split)) for split in splits))
            for role in roles_with(evidence, *splits)
        }
        return self.finding(
            scores["unlearned"],
            samples=len(kept) + len(gone),
            interval=_interval(kept, gone, evidence.seed),
            controls={role: score for role, score in scores.items() if role != "unlearned"},
            details={"test_retain": float(kept.mean()), "test_forget": float(gone.mean())},
            note=hidden_note(evidence),
        )


def _interval(kept: Tensor, gone: Tensor, seed: int) -> tuple[float, float] | None:
    """Return an interval of the score, or ``None`` for fewer than ten samples of either kind."""
    if min(len(kept), len(gone)) < FEWEST:
        return None
    if any(float(one.mean()) in (0.0, 1.0) for one in (kept, gone)):
        (kept_low, kept_high), (gone_low, gone_high) = (
            wilson(float(one.sum()), len(one)) for one in (kept, gone)
        )  # the score rises with the one and falls with the other
        return unlearning_score(kept_low, gone_high), unlearning_score(kept_high, gone_low)
    drawn = zip(
        resampled_means(kept, seed=seed).tolist(),
        resampled_means(gone, seed=seed + 1).tolist(),
        strict=True,
    )
    scores = [unlearning_score(a, b) for a, b in drawn]
    return percentile_interval(torch.tensor(scores, dtype=torch.float64))


def _score(kept: Tensor, gone: Tensor) -> float:
    return unlearning_score(float(kept.mean()), float(gone.mean()))
