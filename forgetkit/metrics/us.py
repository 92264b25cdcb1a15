"""One number for a forgotten class: kept accuracy and forgotten accuracy together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.evidence import Evidence, NotApplicable
from forgetkit.auditing.intervals import percentile_interval, resampled_means
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

    Differences: accuracies as fractions.
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
        """Score every model at hand; the interval resamples both test sets."""
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
        drawn = zip(
            resampled_means(kept, seed=evidence.seed).tolist(),
            resampled_means(gone, seed=evidence.seed + 1).tolist(),
            strict=True,
        )
        return self.finding(
            scores["unlearned"],
            samples=len(kept) + len(gone),
            interval=percentile_interval(Tensor([unlearning_score(a, b) for a, b in drawn])),
            controls={role: score for role, score in scores.items() if role != "unlearned"},
            details={"test_retain": float(kept.mean()), "test_forget": float(gone.mean())},
            note=hidden_note(evidence),
        )


def _score(kept: Tensor, gone: Tensor) -> float:
    return unlearning_score(float(kept.mean()), float(gone.mean()))
