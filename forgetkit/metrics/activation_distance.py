"""Distance of probabilities from those of a retrained model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.divergence import differences
from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.to_reference import distance_finding
from forgetkit.fields import choice
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class ActivationDistance(Metric):
    """Mean norm of the difference of probabilities on the forget set.

        d = mean |p - q|_2 (l2), mean |p - q|_1 (l1) or (mean |p - q|_2^2)^(1/2) (rms)

    p = probabilities of the model, q = of the first retrained one; behind a masked head over the
    kept classes.

    Verdict: ``residual`` when the model is surely farther from the first retrained model than any
        other one is, farther from all than one more of them would be, and its losses on D_f are
        the smaller ones, ``over-forgotten`` when it is and they are not; ``not decidable`` with
        fewer than three retrained models.

    Source: Golatkar et al., "Mixed-Privacy Forgetting in Deep Networks", CVPR 2021 (l1); Chundawat
        et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv:2205.08096 (l2).

    Differences: none.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="activation_distance",
        title="Activation distance",
        group="distribution",
        level="quick",
        range="[0, 1.414] for l2 and rms, [0, 2] for l1; in probabilities",
        good="0, or as small as between two retrained models",
        bad="On the forgotten samples it answers unlike a model that never saw them.",
        needs="a retrained model and the forget set; three retrained models for a verdict",
        cost="nothing beyond the collected outputs",
        source="Golatkar et al. 2021, CVPR; Chundawat et al. 2023, AAAI",
        link="https://arxiv.org/abs/2205.08096",
        about="How far probabilities are from the retrained model's.",
    )

    norm: str = choice(
        "l2",
        ("l2", "l1", "rms"),
        "l2: mean length; l1: mean sum of absolute values; rms: root of the mean squared length",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Summarise over samples; on test sets in the details."""
        if self.norm == "rms":
            return distance_finding(self, evidence, _squares, shown=math.sqrt)
        return distance_finding(self, evidence, self._distance)

    def _distance(self, reference: Tensor, model: Tensor) -> Tensor:
        return differences(model, reference, self.norm)


def _squares(reference: Tensor, model: Tensor) -> Tensor:
    return differences(model, reference, "l2").square()
