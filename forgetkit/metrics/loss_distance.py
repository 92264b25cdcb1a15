"""Distance between the losses of forgotten and of unseen samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.loss_attack import member_losses, roles_attacked
from forgetkit.auditing.readings import entropy_note
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class LossDistance(Metric):
    """Wasserstein-1 distance between the losses on D_f and on unseen samples of its classes.

        W_1 = integral |F(l) - G(l)| dl,  F, G the distribution functions of the two sets of losses

    Verdict: none; ``mia_loss`` judges whether losses tell members from non-members.

    Source: Villani, "Optimal Transport", Springer 2009.

    Differences: a loss counts as 400 nats at most; behind a masked head entropies over the kept
        classes stand for losses. Both sets are cut to the same number of samples of each class.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="loss_distance",
        title="Distance of loss distributions",
        group="distribution",
        level="quick",
        range="[0, 400], nats; a loss counts as 400 at most",
        good="as small as under the retrained model",
        bad="Losses on forgotten samples differ from those on unseen ones, so they stand out.",
        needs="the forget set and test samples of its classes",
        cost="nothing beyond the collected outputs",
        source="Villani 2009, Optimal Transport (Wasserstein-1)",
        link="https://doi.org/10.1007/978-3-540-71050-9",
        about="How far losses on forgotten samples are from those on unseen samples.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Compare the two sets under every model at hand."""
        pairs = {role: member_losses(evidence, role, 1) for role in roles_attacked(evidence)}
        own, unseen = pairs["unlearned"]
        values = {role: _distance(*pair) for role, pair in pairs.items()}
        return self.finding(
            values["unlearned"],
            samples=len(own),
            controls={role: value for role, value in values.items() if role != "unlearned"},
            details={
                "unseen": len(unseen),
                "mean_loss": {"forget": float(own.mean()), "unseen": float(unseen.mean())},
            },
            note=entropy_note(evidence),
        )


def _distance(forget: Tensor, unseen: Tensor) -> float:
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(forget.numpy(), unseen.numpy()))
