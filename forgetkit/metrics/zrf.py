"""How alike a model and untrained weights answer on the forgotten samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.audit.divergence import zrf
from forgetkit.audit.evidence import Evidence, Outputs
from forgetkit.audit.intervals import compared, mean_interval
from forgetkit.audit.readings import outputs, retrained_outputs, roles_with, single_label
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class ZRF(Metric):
    """1 - mean JS in bits between a model and its untrained twin, on the forget set.

    Higher is not better: a model that answers forgotten samples like noise is conspicuous. The
    target is the retrained model's value.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="zrf",
        title="Zero retrain forgetting metric",
        group="distribution",
        level="quick",
        range="[0, 1]",
        good="the retrained model's own value",
        bad="It answers forgotten samples more surely, or more randomly, than after retraining.",
        needs="an untrained model and the forget set; a retrained model for a verdict",
        cost="nothing beyond the collected outputs",
        source="Chundawat et al. 2023, AAAI",
        link="https://arxiv.org/abs/2205.08096",
        about="How much predictions on forgotten samples resemble those of random weights.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Compare every model with the untrained one, sample by sample."""
        twin = single_label(outputs(evidence, "untrained", "forget")).log_probs

        def likeness(found: Outputs) -> Tensor:
            return zrf(single_label(found).log_probs, twin)

        own = likeness(outputs(evidence, "unlearned", "forget"))
        others = [likeness(found) for found in retrained_outputs(evidence, "forget")]
        values: dict[str, float] = {
            role: float(likeness(outputs(evidence, role, "forget")).mean())
            for role in roles_with(evidence, "forget")
            if role not in ("unlearned", "untrained")
        }
        return self.finding(
            float(own.mean()),
            samples=len(own),
            interval=mean_interval(own, seed=evidence.seed),
            controls=values,
            details={"retrained": [float(each.mean()) for each in others]},
            verdict=compared(own, others, seed=evidence.seed, more="over-forgotten"),
        )
