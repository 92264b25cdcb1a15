"""Test accuracy and forgetting score in one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.auditing.evidence import Evidence, Role
from forgetkit.auditing.loss_attack import score_of
from forgetkit.auditing.readings import (
    entropy_note,
    hits,
    outputs,
    roles_with,
    tests_given,
    together,
)
from forgetkit.membership import final_score
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class FinalScore(Metric):
    """Test accuracy and the forgetting score FS in one number.

        final = (acc + 1 - 2 FS) / 2

    acc is the accuracy on test samples of the kept classes, or on all of them where no class was
    forgotten; several labels a sample count as their mean, and are refused where classes were.
    ``forgetting_score`` has FS.

    Verdict: none; a mean of two unlike numbers has no rule.

    Source: Choi et al., "Guided Loss-Increasing", CVPR Workshops 2024, supplement and notebooks.

    Differences: those of ``forgetting_score``.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="final_score",
        title="Final score",
        group="score",
        level="quick",
        range="[0, 1], a mean of shares",
        good="near the retrained model's; higher is better",
        bad="Accuracy was lost, or the losses still give the forgotten samples away.",
        needs="ten forget samples and test samples",
        cost="ten small logistic regressions a model",
        source="Choi et al. 2024, CVPR Workshops",
        link="https://github.com/Dasol-Choi/Guided_Loss_Increasing",
        about="Test accuracy and the forgetting score with equal weight.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Score every model at hand."""
        splits = tests_given(evidence)
        if evidence.goal == "classes":
            splits = ("test_retain",)
        outputs(evidence, "unlearned", "forget")
        tests = together(evidence, "unlearned", splits)
        roles: list[Role] = roles_with(evidence, "forget", *splits)
        parts = {
            role: (_accuracy(evidence, role, splits), score_of(evidence, role)) for role in roles
        }
        scores = {role: final_score(*pair) for role, pair in parts.items()}
        return self.finding(
            scores["unlearned"],
            samples=len(tests),
            controls={role: score for role, score in scores.items() if role != "unlearned"},
            details={
                "test_accuracy": {role: accuracy for role, (accuracy, _) in parts.items()},
                "forgetting_score": {role: score for role, (_, score) in parts.items()},
                "sets": list(splits),
            },
            note=entropy_note(evidence),
        )


def _accuracy(evidence: Evidence, role: Role, splits: tuple[str, ...]) -> float:
    return float(hits(together(evidence, role, splits)).mean())
