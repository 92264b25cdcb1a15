"""Closeness to a retrained model, as a product over sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.auditing.gaps import rows_against, tug_of_war
from forgetkit.auditing.readings import hidden_note
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class TugOfWar(Metric):
    """Closeness of three accuracies to the retrained model's, as a product.

        ToW = (1 - |d_f|) (1 - |d_r|) (1 - |d_t|),  d = acc(model) - acc(retrained)

    on D_f, D_r and test samples (of kept classes where classes were forgotten), as fractions.

    Verdict: none; the control ``retrained`` says how near two retrained models come.

    Source: Zhao et al., "What makes unlearning hard and what to do about it", NeurIPS 2024,
        arXiv:2406.01257.

    Differences: none.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="tow",
        title="Tug of war",
        group="score",
        level="quick",
        range="[0, 1], a product of shares",
        good="1, or as near to it as a second retrained model",
        bad="On some set the accuracy is not that of a model that never saw the samples.",
        needs="a retrained model, the forget and retain sets and test samples",
        cost="nothing beyond the collected outputs",
        source="Zhao et al. 2024, NeurIPS (RUM)",
        link="https://arxiv.org/abs/2406.01257",
        about="How close the three accuracies are to the retrained model's, as a product.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Multiply over the three sets, for every model at hand."""
        rows, reference = rows_against(evidence, membership=False)
        absent = [name for name in ("forget", "retain", "test") if name not in reference]
        if absent:
            raise Missing(f"needs the sets {', '.join(absent)}, which were not given")
        scores = {
            role: tug_of_war([row[name] - reference[name] for name in reference])
            for role, row in rows.items()
        }
        return self.finding(
            scores["unlearned"],
            samples=len(reference),
            controls={role: score for role, score in scores.items() if role != "unlearned"},
            details={"rows": rows, "reference": reference},
            note="; ".join(
                filter(
                    None,
                    (
                        "samples are sets; the control `retrained` is a second retrained model",
                        hidden_note(evidence),
                    ),
                )
            ),
        )
