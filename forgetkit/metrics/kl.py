"""KL divergence of predictions from those of a retrained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.auditing.divergence import kl
from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.to_reference import distance_finding
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class KLToRetrained(Metric):
    """Mean KL divergence on the forget set: what the retrained model has and this one lacks.

        KL(q || p) = sum_c q_c log(q_c / p_c)

    p = probabilities of the model, q = of the first retrained one; behind a masked head over the
    kept classes.

    Verdict: ``residual`` when the model is surely farther from the first retrained model than any
        other one is, farther from all than one more of them would be, and its losses on D_f are
        the smaller ones, ``over-forgotten`` when it is and they are not; ``not decidable`` with
        fewer than three retrained models.

    Source: Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020,
        arXiv:1911.04933.

    Differences: between predictions on samples, not between distributions of weights.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="kl",
        title="KL divergence to the retrained model",
        group="distribution",
        level="quick",
        range="[0, infinity), nats",
        good="0, or as small as between two retrained models",
        bad="On the forgotten samples it answers unlike a model that never saw them.",
        needs="a retrained model and the forget set; three retrained models for a verdict",
        cost="nothing beyond the collected outputs",
        source="Golatkar et al. 2020, CVPR",
        link="https://arxiv.org/abs/1911.04933",
        about="How far predictions are from the retrained model's, in the reference's direction.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Average over samples; on test sets in the details."""
        return distance_finding(self, evidence, kl)
