"""How far a simple attack on losses is from guessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.audit.evidence import Evidence
from forgetkit.audit.loss_attack import loss_auc, member_losses, score_of, unseen_splits
from forgetkit.audit.readings import roles_with
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class ForgettingScore(Metric):
    """FS = |M - 0.5|, M the accuracy of a logistic regression on the loss; see ``membership``."""

    card: ClassVar[MetricCard] = MetricCard(
        slug="forgetting_score",
        title="Forgetting score",
        group="score",
        level="quick",
        range="[0, 0.5]",
        good="0, or as low as the retrained model's",
        bad="The losses of forgotten samples give away whether a sample was in the training data.",
        needs="ten forget samples and ten test samples of their classes",
        cost="ten small logistic regressions a model",
        source="Choi et al. 2024, CVPR Workshops",
        link="https://github.com/Dasol-Choi/Guided_Loss_Increasing",
        about="How well losses tell forgotten from unseen samples: a weak attack.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Attack every model at hand; the AUC of the loss stands beside the score."""
        forget, unseen = member_losses(evidence, "unlearned")
        roles = roles_with(evidence, "forget", *unseen_splits(evidence))
        scores = {role: score_of(evidence, role) for role in roles}
        return self.finding(
            scores["unlearned"],
            samples=2 * min(len(forget), len(unseen)),
            controls={role: score for role, score in scores.items() if role != "unlearned"},
            details={
                "auc": {role: loss_auc(*member_losses(evidence, role)) for role in scores},
                "unseen": len(unseen),
            },
        )
