"""How alike a model and untrained weights answer on the forgotten samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.direction import of_sureness
from forgetkit.auditing.divergence import zrf
from forgetkit.auditing.evidence import Evidence, Outputs
from forgetkit.auditing.intervals import mean_interval
from forgetkit.auditing.readings import (
    log_probs,
    masked_note,
    outputs,
    retrained_outputs,
    roles_with,
)
from forgetkit.auditing.training_spread import compared_trainings, wanting
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class ZRF(Metric):
    """Likeness of predictions on the forget set to those of an untrained twin.

        ZRF = 1 - (1 / |D_f|) sum_{x in D_f} JS(p(x), p_untrained(x)),  JS in bits

    Higher is not better: a model that answers forgotten samples like noise is conspicuous. The
    target is the retrained model's value.

    Verdict: ``over-forgotten`` when surely higher than every retrained model's and beyond what
        another training would make of it, ``residual`` when lower like that; ``not decidable``
        without a second retrained model. For wrong labels, and with a single kept class, the loss
        on the forgotten labels tells the two apart.

    Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv:2205.08096.

    Differences: base 2, so that the range is [0, 1]; the divergence of the text, where released
        code has an element-wise mean of KL terms; behind a masked head over the kept classes.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="zrf",
        title="Zero retrain forgetting metric",
        group="distribution",
        level="quick",
        range="[0, 1], 1 minus bits",
        good="the retrained model's own value",
        bad="It answers forgotten samples more surely, or more randomly, than after retraining.",
        needs="an untrained model and the forget set; two retrained models for a verdict",
        cost="nothing beyond the collected outputs",
        source="Chundawat et al. 2023, AAAI",
        link="https://arxiv.org/abs/2205.08096",
        about="How much predictions on forgotten samples resemble those of random weights.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Compare every model with the untrained one, sample by sample."""
        twin = log_probs(evidence, outputs(evidence, "untrained", "forget"))

        def likeness(found: Outputs) -> Tensor:
            return zrf(log_probs(evidence, found), twin)

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
            verdict=of_sureness(
                evidence, compared_trainings(own, others, seed=evidence.seed, more="over-forgotten")
            ),
            note="; ".join(filter(None, [masked_note(evidence), wanting(len(others), 2)])),
        )
