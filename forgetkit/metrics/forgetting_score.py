"""How far a simple attack on losses is from guessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.loss_attack import loss_auc, member_losses, roles_attacked, score_of
from forgetkit.auditing.readings import entropy_note
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class ForgettingScore(Metric):
    """How far an attack on the loss is from guessing.

        FS = |M - 0.5|

    M is how often a logistic regression on the loss alone tells D_f from unseen samples of the same
    classes: mean accuracy over ten stratified splits that hold out a tenth. A destroyed model also
    has FS near 0, so read it beside the accuracy.

    Verdict: none; ``mia_loss`` judges the same attack by its AUC.

    Source: Choi et al., "Guided Loss-Increasing", CVPR Workshops 2024, supplement and notebooks.

    Differences: the larger group is cut to the size of the smaller one, class by class, or guessing
        would exceed 0.5; a loss counts as 400 at most; behind a masked head entropies over the kept
        classes stand for losses.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="forgetting_score",
        title="Forgetting score",
        group="score",
        level="quick",
        range="[0, 0.5], a difference of shares",
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
        scores = {role: score_of(evidence, role) for role in roles_attacked(evidence)}
        return self.finding(
            scores["unlearned"],
            samples=2 * min(len(forget), len(unseen)),
            controls={role: score for role, score in scores.items() if role != "unlearned"},
            details={
                "auc": {role: loss_auc(*member_losses(evidence, role)) for role in scores},
                "unseen": len(unseen),
            },
            note=entropy_note(evidence),
        )
