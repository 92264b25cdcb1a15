"""LiRA against models that never saw the forget samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.likelihood import POOL_BELOW, gaussian, pooled_deviation, standard_score
from forgetkit.auditing.members import attacked, groups
from forgetkit.auditing.reference import references_for
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Subject


@register_metric
@dataclass(frozen=True, kw_only=True)
class LiRA(Metric):
    """Ask for each sample how unusual its confidence is among models that never saw it.

        score = (phi - mean_out) / deviation_out,  phi = z_y - log sum_{c != y} e^z_c

    the one-sided test that needs no models with the sample. Headline: AUC against test samples of
    the same classes, which the reference models did not see either. The first retrained model is
    the control, the others are the reference.

    Verdict: ``residual`` when the AUC is surely above the first retrained model's,
        ``over-forgotten`` when surely below, as that gives the samples away too; otherwise
        ``as retrain``, but ``not decidable`` without a retrained model or unless the AUC under the
        original surely differs from that model's.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
        arXiv:2112.03570, section V.C.

    Differences: below 16 reference models one deviation is pooled over all samples. The paper takes
        Phi of the score, which ranks alike but rounds large ones to 1.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="lira",
        title="Likelihood ratio attack (LiRA), offline",
        group="attack",
        level="full",
        range="[0, 1], area under the ROC curve",
        good="as the retrained model's, which should be 0.5",
        bad="For single samples, the model is surer than any model that never saw them.",
        needs="ten forget samples, ten tests of their classes; three retrained models or more",
        cost="one training a reference model, then a second",
        source="Carlini et al. 2022, S&P",
        link="https://arxiv.org/abs/2112.03570",
        about="How unusual each sample's confidence is among models that never saw it.",
    )

    resamples: int = bounded(1000, 10, 100000, "bootstrap resamples behind the interval")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the AUC of the attack."""
        reference = references_for(evidence)
        if len(reference.out) < 2:
            raise Missing(
                "needs two reference models beside the one that serves as control, found "
                f"{len(reference.out)}"
            )
        chosen = groups(evidence)
        rows = {"forget": chosen.members, "test_forget": chosen.others}

        def phi(model: Subject, split: str) -> Tensor:
            return reference.confidence(model, split)[rows[split]]

        out = {split: torch.stack([phi(one, split) for one in reference.out]) for split in rows}
        # One deviation for members and others: one of each set's own would tell the sets apart.
        few = len(reference.out) < POOL_BELOW
        shared = pooled_deviation(*out.values(), ddof=1) if few else None
        outside = {split: gaussian(values, shared, ddof=1) for split, values in out.items()}

        def score(model: Subject, split: str) -> Tensor:
            return standard_score(phi(model, split), outside[split])

        scores = {
            role: (score(target, "forget"), score(target, "test_forget"))
            for role, target in reference.targets.items()
        }
        found = attacked(scores, resamples=self.resamples, seed=evidence.seed)
        return self.finding(
            found.auc["unlearned"],
            samples=2 * len(chosen.members),
            interval=found.intervals["unlearned"],
            controls=found.controls(),
            details={**found.details(), "reference_models": len(reference.out)},
            verdict=found.verdict,
            note=found.note,
        )
