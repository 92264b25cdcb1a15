"""Jensen-Shannon divergence of predictions from those of a retrained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.divergence import LN2, js
from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.to_reference import distance_finding
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class JSToRetrained(Metric):
    """Mean Jensen-Shannon divergence in bits on the forget set; not its square root.

        JS(p, q) = (KL(p || m) + KL(q || m)) / (2 log 2),  m = (p + q) / 2

    p = probabilities of the model, q = of the first retrained one; behind a masked head over the
    kept classes. JS_tr and JS_tf of the benchmark tables are in nats, log 2 = 0.693 times as large.

    Verdict: ``residual`` when the model is surely farther from the first retrained model than any
        other one is, farther from all than one more of them would be, and its losses on D_f are
        the smaller ones, ``over-forgotten`` when it is and they are not; ``not decidable`` with
        fewer than three retrained models.

    Source: Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on
        Information Theory, 1991.

    Differences: none.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="js",
        title="Jensen-Shannon divergence to the retrained model",
        group="distribution",
        level="quick",
        range="[0, 1], bits",
        good="0, or as small as between two retrained models",
        bad="On the forgotten samples it answers unlike a model that never saw them.",
        needs="a retrained model and the forget set; three retrained models for a verdict",
        cost="nothing beyond the collected outputs",
        source="Lin 1991, IEEE Transactions on Information Theory",
        link="https://doi.org/10.1109/18.61115",
        about="How far predictions are from the retrained model's, in bits, the same in both "
        "directions.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Average over samples; on test sets in the details."""
        return distance_finding(self, evidence, bits)


def bits(reference: Tensor, model: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each row in bits, (rows,)."""
    return js(reference, model) / LN2
