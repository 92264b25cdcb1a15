"""Jensen-Shannon divergence between the losses of forgotten and of unseen samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.divergence import histogram_js
from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.loss_attack import member_losses, roles_attacked
from forgetkit.auditing.readings import entropy_note
from forgetkit.fields import choice
from forgetkit.membership import jensen_shannon_distance
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class LossJS(Metric):
    """JS between the distributions of losses on D_f and on unseen samples of its classes.

        JS(p, q) = (KL(p || m) + KL(q || m)) / (2 log 2),  m = (p + q) / 2

    p, q = histograms over common bins, as many as the square root of the smaller set, within 5 and
    30; the largest twentieth of all losses shares the last bin. ``density="kde"``: the root of the
    divergence in nats of Gaussian kernel estimates on 1 000 points.

    Verdict: none; ``mia_loss`` judges whether losses tell members from non-members.

    Source: Choi et al., "Guided Loss-Increasing", CVPR Workshops 2024, supplement (the form with
        kde).

    Differences: histograms by default, because the other form depends on its bandwidth. Both sets
        are cut to the same number of samples of each class; behind a masked head entropies over the
        kept classes stand for losses.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="loss_js",
        title="Jensen-Shannon divergence of losses",
        group="distribution",
        level="quick",
        range="[0, 1], bits; with kde [0, 0.833], the root of the divergence in nats",
        good="as small as under the retrained model",
        bad="Losses on forgotten samples differ from those on unseen ones, so they stand out.",
        needs="ten forget samples and ten test samples of their classes",
        cost="nothing beyond the collected outputs",
        source="Choi et al. 2024, CVPR Workshops (the form with kde)",
        link="https://github.com/Dasol-Choi/Guided_Loss_Increasing",
        about="How unlike the distributions of losses on forgotten and unseen samples are.",
    )

    density: str = choice(
        "histogram",
        ("histogram", "kde"),
        "histogram: 5 to 30 common bins, divergence in bits; kde: distance of kernel estimates, "
        "to compare with the paper only",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Compare the two sets under every model at hand."""
        pairs = {role: member_losses(evidence, role) for role in roles_attacked(evidence)}
        own, unseen = pairs["unlearned"]
        values = {role: self._divergence(*pair) for role, pair in pairs.items()}
        return self.finding(
            values["unlearned"],
            samples=len(own),
            controls={role: value for role, value in values.items() if role != "unlearned"},
            details={"unseen": len(unseen)},
            note=entropy_note(evidence),
        )

    def _divergence(self, forget: Tensor, unseen: Tensor) -> float:
        compare = jensen_shannon_distance if self.density == "kde" else histogram_js
        return compare(forget, unseen)
