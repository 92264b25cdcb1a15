"""RMIA: the strongest membership attack that a handful of reference models allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.attacks import FEWEST, auc
from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.likelihood import average_probability, relative_score
from forgetkit.auditing.members import attacked, groups
from forgetkit.auditing.reference import Reference, references_for
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Role

GRID = tuple(step / 10 for step in range(11))


@register_metric
@dataclass(frozen=True, kw_only=True)
class RMIA(Metric):
    """Compare how much likelier a sample is than in reference models, with population samples.

        score(x) = share of population z with ratio(x) / ratio(z) > gamma
        ratio(x) = p(x) / p_bar(x),  p_bar = ((1 + a) mean_out p + (1 - a)) / 2

    Half of the test samples of the forgotten classes are the population, the other half the
    non-members. Headline: AUC. Of several retrained models the first is the control, the others are
    the reference; a single one is the reference.

    Verdict: ``residual`` when the AUC is surely above the first retrained model's,
        ``over-forgotten`` when surely below, as that gives the samples away too; otherwise
        ``as retrain``, but ``not decidable`` without a retrained model or unless the AUC under the
        original surely differs from that model's.

    Source: Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024,
        arXiv:2312.03262.

    Differences: for a masked head the probability is renormalised over the kept classes and taken
        at the class that the reference models answer most, as the label has none.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="rmia",
        title="Robust membership inference attack (RMIA)",
        group="attack",
        level="full",
        range="[0, 1], area under the ROC curve",
        good="as the retrained model's, which should be 0.5",
        bad="An attacker with a few models of their own tells which samples were trained on.",
        needs="20 forget samples, 20 tests of their classes; a retrained model, two for a verdict",
        cost="one training a reference model, then seconds",
        source="Zarifzadeh et al. 2024, ICML",
        link="https://arxiv.org/abs/2312.03262",
        about="How well likelihoods relative to reference models tell members from non-members.",
    )

    a: float | None = bounded(
        0.3, 0.0, 1.0, "from 0 (members are certain) to 1; None: tuned on original",
        optional=True,
    )  # fmt: skip
    gamma: float = bounded(1.0, 0.01, 100.0, "how much a sample must dominate a population sample")
    resamples: int = bounded(1000, 10, 100000, "bootstrap resamples behind the interval")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the AUC of the attack."""
        reference = references_for(evidence)
        chosen = groups(evidence, 2 * FEWEST)
        others = chosen.others
        order = torch.randperm(
            len(others), generator=torch.Generator().manual_seed(evidence.seed + 1)
        )
        half = len(others) // 2
        split = Split(chosen.members, others[order[:half]], others[order[half:]])
        a, tuned = self.a, False
        if a is None:
            if "original" not in reference.targets:
                raise Missing("needs the original model to tune a; set a, such as 0.3")
            a = max(GRID, key=lambda one: auc(*self._scores(reference, "original", split, one)))
            tuned = True
        scores = {role: self._scores(reference, role, split, a) for role in reference.targets}
        found = attacked(scores, resamples=self.resamples, seed=evidence.seed)
        note = "; ".join(filter(None, ("a was tuned on the original" if tuned else "", found.note)))
        return self.finding(
            found.auc["unlearned"],
            samples=len(split.members) + len(split.others),
            interval=found.intervals["unlearned"],
            controls=found.controls(),
            details={
                **found.details(),
                "a": a,
                "reference_models": len(reference.out),
                "population": len(split.population),
            },
            verdict=found.verdict,
            note=note,
        )

    def _scores(
        self, reference: Reference, role: Role, split: Split, a: float
    ) -> tuple[Tensor, Tensor]:
        """Return scores of members and of non-members under one model."""

        def ratio(name: str, rows: Tensor) -> Tensor:
            p = reference.probability(reference.targets[role], name)[rows]
            out = torch.stack([reference.probability(one, name)[rows] for one in reference.out])
            return p / average_probability(out, a).clamp(min=1e-300)

        population = ratio("test_forget", split.population)
        return (
            relative_score(ratio("forget", split.members), population, self.gamma),
            relative_score(ratio("test_forget", split.others), population, self.gamma),
        )


@dataclass(frozen=True)
class Split:
    """Rows of members, of the population and of non-members."""

    members: Tensor
    population: Tensor
    others: Tensor
