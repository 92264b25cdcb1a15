"""Which classes inherit the forgotten samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.cells import Cells
from forgetkit.auditing.divergence import LN2, distribution, shares_js, spread
from forgetkit.auditing.evidence import Evidence, Outputs
from forgetkit.auditing.readings import (
    log_probs,
    masked_note,
    outputs,
    retrained_outputs,
    roles_with,
    single_label,
    tests_given,
    together,
)
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

WHOLE = 100
"""More classes than this, and a matrix is nearly all zeros: only its other cells are kept."""


@register_metric
@dataclass(frozen=True, kw_only=True)
class Confusion(Metric):
    """Distribution of predictions on the forget set; the headline is its entropy over log K.

        spread = -sum_c q_c log q_c / log K,  q_c = share of D_f that is predicted as class c

    K is the number of classes, behind a masked head of the kept ones. The details hold q for every
    model, its Jensen-Shannon divergence in bits from each retrained model's, and the confusion
    matrix on test samples, rows true, by row share: with more than 100 classes as lists of the
    ``cells`` that are not 0.

    Verdict: none; ``completeness`` and ``js`` judge sample by sample.

    Source: Chen et al., "Boundary Unlearning", CVPR 2023, arXiv:2303.11570, looks at where
        forgotten samples go.

    Differences: the entropy of that distribution as one number is ours.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="confusion",
        title="Confusion of the forgotten samples",
        group="distribution",
        level="quick",
        range="[0, 1], share of the largest entropy: 0 all in one class, 1 spread evenly",
        good="as spread as under the retrained model, over the same classes",
        bad="Forgotten samples all land in one class, which gives away that they were moved there.",
        needs="the forget set",
        cost="nothing beyond the collected outputs",
        source="Chen et al. 2023, CVPR (Boundary Unlearning)",
        link="https://arxiv.org/abs/2303.11570",
        about="Which classes forgotten samples are put into, and the whole confusion matrix.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Count predictions on the forget set by class, for every model at hand."""
        outputs(evidence, "unlearned", "forget")
        shares = {
            role: self._shares(evidence, outputs(evidence, role, "forget"))
            for role in roles_with(evidence, "forget")
        }
        spreads = {role: spread(each) for role, each in shares.items()}
        details: dict[str, object] = {
            "predicted": {role: each.tolist() for role, each in shares.items()},
            "classes": list(self._classes(evidence)),
        }
        tested = _tested(evidence)
        if evidence.num_classes <= WHOLE:
            details["matrix"] = {role: cells.matrix().tolist() for role, cells in tested.items()}
        else:
            details["cells"] = {role: cells.to_json() for role, cells in tested.items()}
        others = [self._shares(evidence, each) for each in retrained_outputs(evidence, "forget")]
        if others:
            details["js_to_retrained"] = [
                shares_js(shares["unlearned"], each) / LN2 for each in others
            ]
        return self.finding(
            spreads["unlearned"],
            samples=len(outputs(evidence, "unlearned", "forget")),
            controls={role: value for role, value in spreads.items() if role != "unlearned"},
            details=details,
            note=masked_note(evidence),
        )

    def _classes(self, evidence: Evidence) -> tuple[int, ...]:
        return evidence.kept_classes if evidence.head_masked else tuple(range(evidence.num_classes))

    def _shares(self, evidence: Evidence, found: Outputs) -> Tensor:
        return distribution(log_probs(evidence, found).argmax(dim=1), len(self._classes(evidence)))


def _tested(evidence: Evidence) -> dict[str, Cells]:
    """Return the confusion matrix on test samples of every model, none without such samples."""
    if not any(evidence.has("unlearned", split) for split in ("test_forget", "test_retain")):
        return {}
    splits = tests_given(evidence)
    return {
        role: confusion_cells(together(evidence, role, splits), evidence.num_classes)
        for role in roles_with(evidence, *splits)
    }


def confusion_cells(found: Outputs, num_classes: int) -> Cells:
    """Return shares by (true, predicted); a class without samples has a row of zeros."""
    return Cells.counted(single_label(found).labels, found.predicted, num_classes)
