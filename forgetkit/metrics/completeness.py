"""How often a model and a retrained one predict the same class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.intervals import wilson
from forgetkit.auditing.to_reference import distance_finding
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class Completeness(Metric):
    """Share of forget samples on which the model predicts what the retrained one predicts.

        agreement = (1 / |D_f|) sum_{x in D_f} [argmax_c p_c(x) = argmax_c q_c(x)]

    p = probabilities of the model, q = of the first retrained one.

    Verdict: ``residual`` when it surely disagrees with the first retrained model more often than
        any other one does, and with all more often than one more of them would, and its losses on
        D_f are the smaller ones, ``over-forgotten`` when it does and they are not; ``not
        decidable`` with fewer than three retrained models.

    Source: Cao, Yang, "Towards Making Systems Forget with Machine Unlearning", IEEE S&P 2015.

    Differences: the headline is that of the forget set; the paper's, of test samples, is in the
        details.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="completeness",
        title="Completeness (agreement)",
        group="distribution",
        level="quick",
        range="[0, 1], share of samples",
        good="1, or as large as between two retrained models",
        bad="It puts the forgotten samples elsewhere than a model that never saw them.",
        needs="a retrained model and the forget set; three retrained models for a verdict",
        cost="nothing beyond the collected outputs",
        source="Cao, Yang 2015, IEEE S&P",
        link="https://doi.org/10.1109/SP.2015.35",
        about="How often it predicts the same class as the retrained model.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Count equal predictions; on test sets in the details."""
        found = distance_finding(self, evidence, disagreement)
        apart = round((found.value or 0.0) * found.samples)
        return replace(
            found,
            value=1.0 - (found.value or 0.0),
            interval=wilson(found.samples - apart, found.samples),
            controls={role: 1.0 - share for role, share in found.controls.items()},
            details={"disagreement": found.details},
        )


def disagreement(reference: Tensor, model: Tensor) -> Tensor:
    """Return 1 where the most likely classes differ, (rows,) float64."""
    return (reference.argmax(dim=1) != model.argmax(dim=1)).double()
