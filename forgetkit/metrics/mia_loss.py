"""Membership inference from losses: the attack of SULI, SCRUB and GLI."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from forgetkit.auditing.attacks import attack_accuracy, auc, cross_scores, entropy
from forgetkit.auditing.members import (
    attacked,
    by_role,
    groups,
    log_probs_of,
    loss_score,
    of_further,
)
from forgetkit.fields import bounded, choice
from forgetkit.membership import forgetting_score
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from typing import Literal

    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Outputs


@register_metric
@dataclass(frozen=True, kw_only=True)
class MiaLoss(Metric):
    """Tell D_f from unseen samples of the same classes by the loss alone.

        AUC = P(l < l') + P(l = l') / 2,  l = loss of a forget sample, l' = of an unseen one

    Beside it the accuracy of a logistic regression on the loss (by ``protocol``), true positive
    rates at 1 % and 0.1 % false positives, and the AUC of an attack on the features. For a masked
    head the loss is the same for all, so the entropy over the kept classes takes its place. ``gli``
    gives the forgetting score |accuracy - 0.5|.

    Verdict: ``residual`` when the AUC is surely above every retrained model's, ``over-forgotten``
        when surely below all, as that gives the samples away too; otherwise ``as retrain``, but
        ``not decidable`` without a retrained model or unless the AUC under the original surely
        differs from that of each.

    Source: SULI, section 5 (ten-fold); SCRUB, arXiv:2302.09880; Guided Loss-Increasing (supplement)
        and its notebooks (``protocol="gli"``).

    Differences: groups are cut to equal size, so accuracy is balanced accuracy; losses are cut at
        400, not 100, because they are float64.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="mia_loss",
        title="Membership inference from losses",
        group="attack",
        level="quick",
        range="[0, 1], area under the ROC curve",
        good="as the retrained model's, which should be 0.5; below 0.5 gives away as much as above",
        bad="The loss of a sample tells whether it was in the training data.",
        needs="ten forget samples, ten tests of their classes; a retrained model for a verdict",
        cost="no F beyond collecting; seconds",
        source="Lyu et al. 2025, IJCAI (SULI); Kurmanji et al. 2023, NeurIPS (SCRUB)",
        link="https://arxiv.org/abs/2302.09880",
        about="How well the loss tells forgotten samples from samples that were never trained on.",
    )

    protocol: Literal["ten-fold", "scrub", "gli"] = choice(
        "ten-fold", ("ten-fold", "scrub", "gli"), "how the accuracy is cross-validated"
    )
    resamples: int = bounded(1000, 10, 100000, "bootstrap resamples behind the interval")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the AUC of minus the loss, with accuracy and rates in the details."""
        chosen = groups(evidence)

        def score(outputs: Outputs) -> Tensor:
            return loss_score(evidence, outputs)

        scores = by_role(evidence, chosen, score)
        further = of_further(evidence, chosen, score)
        found = attacked(scores, further, resamples=self.resamples, seed=evidence.seed)
        accuracy = {role: self._told_apart(evidence, *pair) for role, pair in scores.items()}
        features = {}
        kept = {}
        for role in scores:
            pair = chosen.of(evidence.subjects[role])
            if all(outputs.features is not None for outputs in pair):
                features[role] = auc(*cross_scores(*map(_features, pair), seed=evidence.seed))
            if evidence.goal == "classes" and len(evidence.kept_classes) > 1:
                kept[role] = auc(*(-_kept_entropy(evidence, outputs) for outputs in pair))
        return self.finding(
            found.auc["unlearned"],
            samples=2 * len(chosen.members),
            interval=found.intervals["unlearned"],
            controls=found.controls(),
            details={
                **found.details(),
                "auc_of_further_retrained": [auc(*pair) for pair in further],
                "accuracy" if self.protocol != "gli" else "forgetting_score": accuracy,
                "auc_of_features": features,
                "auc_of_kept_classes": kept,
                "signal": "entropy over kept classes" if evidence.head_masked else "loss",
            },
            verdict=found.verdict,
            note=found.note,
        )

    def _told_apart(self, evidence: Evidence, members: Tensor, others: Tensor) -> float:
        if self.protocol == "gli":
            return forgetting_score(members, others, seed=evidence.seed)
        return attack_accuracy(members, others, protocol=self.protocol, seed=evidence.seed)


def _features(outputs: Outputs) -> Tensor:
    if outputs.features is None:
        raise TypeError("outputs without features were let through")
    return outputs.features.double()


def _kept_entropy(evidence: Evidence, outputs: Outputs) -> Tensor:
    return entropy(log_probs_of(replace(evidence, head_masked=True), outputs))
