"""Mean difference to a retrained model over the usual columns of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.gaps import mean_gap, rows_against
from forgetkit.auditing.readings import hidden_note
from forgetkit.fields import flag
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class AverageGap(Metric):
    """Mean absolute difference of a row of figures from a retrained model's.

        gap = mean over columns of |figure(model) - figure(retrained)|

    Columns are the accuracies on D_f, D_r and test samples (of kept classes where classes were
    forgotten) and the AUC of a loss attack; one whose set is not at hand is left out.

    Verdict: none; the control ``retrained`` says how far apart two retrained models are.

    Source: Fan et al., "SalUn", ICLR 2024, arXiv:2310.12508.

    Differences: fractions instead of percent, and the AUC of a loss attack instead of the share of
        D_f that an attack on confidence calls non-members.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="avg_gap",
        title="Average gap",
        group="score",
        level="quick",
        range="[0, 1], a difference of shares",
        good="0, or as small as between two retrained models",
        bad="The figures differ from those of a model that never saw the samples.",
        needs="a retrained model and at least one set",
        cost="nothing beyond the collected outputs",
        source="Fan et al. 2024, ICLR (SalUn)",
        link="https://arxiv.org/abs/2310.12508",
        about="How far accuracies and a loss attack are from the retrained model's, on average.",
    )

    membership: bool = flag(True, "whether the AUC of the loss attack is one of the columns")

    def measure(self, evidence: Evidence) -> Finding:
        """Compare every model's row of figures with the first retrained model's."""
        rows, reference = rows_against(evidence, membership=self.membership)
        gaps = {
            role: mean_gap(list(row.values()), list(reference.values()))
            for role, row in rows.items()
        }
        return self.finding(
            gaps["unlearned"],
            samples=len(reference),
            controls={role: gap for role, gap in gaps.items() if role != "unlearned"},
            details={"rows": rows, "reference": reference},
            note="; ".join(
                filter(
                    None,
                    (
                        "samples are columns; the control `retrained` is a second retrained model",
                        hidden_note(evidence),
                    ),
                )
            ),
        )
