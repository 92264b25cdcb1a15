"""Whether the forgotten samples stand out by how sure the model is about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.divergence import distribution
from forgetkit.auditing.evidence import Evidence, Outputs, Role
from forgetkit.auditing.intervals import FEWEST
from forgetkit.auditing.readings import (
    log_probs,
    masked_note,
    needs_own_labels,
    outputs,
    roles_with,
)
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, Verdict, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class Streisand(Metric):
    """Two-sample Kolmogorov-Smirnov test of the confidence on forgotten and on unseen samples.

        D = max_t |F(t) - G(t)|,  F, G the distribution functions of max_c p_c on the two sets

    The headline is the p-value of D: how often sets of this size would differ as much by chance.

    Verdict: below ``level``, ``residual`` when the model is surer about forgotten than about unseen
        samples, ``over-forgotten`` when it is less sure, and ``not decidable`` when the retrained
        model is below ``level`` too, as then the sets differ by themselves. From ``level`` on
        ``as retrain``, or ``not decidable`` without a retrained model. Fewer than ten samples of
        either kind decide nothing. Not run for wrong labels, of which sureness says nothing.

    Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv:2205.08096,
        for the effect; Kolmogorov and Smirnov for the test.

    Differences: that this test looks for it is ours; behind a masked head probabilities are over
        the kept classes.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="streisand",
        title="Streisand check",
        group="distribution",
        level="quick",
        range="[0, 1], a p-value",
        good="at least the level, 0.01 by default",
        bad="Forgotten samples can be found again by how sure the model is about them.",
        needs="the forget set with right labels, tests of its classes; a retrained model to pass",
        cost="nothing beyond the collected outputs",
        source="Chundawat et al. 2023, AAAI; Kolmogorov-Smirnov test",
        link="https://arxiv.org/abs/2205.08096",
        about="Whether confidence on forgotten samples is distributed as on unseen ones.",
    )

    level: float = bounded(0.01, 1e-6, 0.5, "p-values below it are flagged")

    def measure(self, evidence: Evidence) -> Finding:
        """Test every model at hand."""
        needs_own_labels(evidence)
        own = confidence(evidence, "unlearned", "forget")
        unseen = confidence(evidence, "unlearned", "test_forget")
        fewest = min(len(own), len(unseen))
        few = f"{fewest} samples are too few to decide" if fewest < FEWEST else ""
        roles = roles_with(evidence, "forget", "test_forget")
        values = {
            role: _p_value(
                confidence(evidence, role, "forget"), confidence(evidence, role, "test_forget")
            )
            for role in roles
        }
        return self.finding(
            values["unlearned"],
            samples=len(own),
            controls={role: value for role, value in values.items() if role != "unlearned"},
            details={
                "unseen": len(unseen),
                "mean_confidence": {"forget": float(own.mean()), "unseen": float(unseen.mean())},
                "largest_share": self._largest_share(evidence),
            },
            verdict="not decidable" if few else self._verdict(values, own, unseen),
            note="; ".join(filter(None, [masked_note(evidence), few])),
        )

    def _verdict(self, values: dict[Role, float], own: Tensor, unseen: Tensor) -> Verdict:
        if values["unlearned"] >= self.level:
            return "as retrain" if "retrained" in values else "not decidable"
        if values.get("retrained", 1.0) < self.level:
            return "not decidable"  # the sets differ for a model that saw neither
        return "residual" if float(own.mean()) > float(unseen.mean()) else "over-forgotten"

    def _largest_share(self, evidence: Evidence) -> dict[str, float]:
        """Return the share of the most frequent prediction on the forget set, by model."""

        def share(found: Outputs) -> float:
            predicted = log_probs(evidence, found).argmax(dim=1)
            return float(distribution(predicted, evidence.num_classes).max())

        return {
            role: share(outputs(evidence, role, "forget"))
            for role in roles_with(evidence, "forget")
        }


def confidence(evidence: Evidence, role: Role, split: str) -> Tensor:
    """Return the largest probability of each sample, (samples,) float64."""
    found = log_probs(evidence, outputs(evidence, role, split))
    return found.max(dim=1).values.exp()


def _p_value(forget: Tensor, unseen: Tensor) -> float:
    from scipy.stats import ks_2samp

    return float(ks_2samp(forget.numpy(), unseen.numpy()).pvalue)
