"""How often a model is right on each of the four sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.evidence import SPLITS, Evidence, Outputs
from forgetkit.auditing.intervals import compared, wilson
from forgetkit.auditing.readings import (
    HIDDEN,
    by_role,
    controls,
    hits,
    outputs,
    retrained_outputs,
    roles_with,
)
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Share of right predictions with Wilson intervals; the headline is the forget set's.

        acc(S) = (1 / |S|) sum_{(x, y) in S} [argmax_c z_c(x) = y]

    z are the logits. Several labels a sample count as the mean over labels of the accuracy at
    probability 0.5; on samples of forgotten classes as the share of their forgotten labels that is
    still predicted.

    Verdict: ``residual`` when surely more forget samples are right than under every retrained
        model, ``over-forgotten`` when surely fewer; none for a masked head, whose 0 is by
        construction.

    Source: the sets of Kim, Lee, Woo, AAAI 2024, arXiv:2312.16823; interval: Wilson, 1927.

    Differences: fractions instead of percent.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="accuracy",
        title="Accuracy by set",
        group="accuracy",
        level="quick",
        range="[0, 1], share of samples",
        good="kept samples: as the original; forgotten ones: as a model that never saw them",
        bad="The model still recognises what it should have forgotten, or no longer what it keeps.",
        needs="the forget set; a retrained model for a verdict",
        cost="nothing beyond the collected outputs",
        source="Kim, Lee, Woo 2024, AAAI",
        link="https://arxiv.org/abs/2312.16823",
        about="How often the model is right on forgotten and kept, training and test samples.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Count right predictions; a masked head makes the forget accuracy 0 by construction."""
        own = _right(evidence, "forget", outputs(evidence, "unlearned", "forget"))
        shares = by_role(
            evidence, "forget", lambda found: float(_right(evidence, "forget", found).mean())
        )
        others = [
            _right(evidence, "forget", found) for found in retrained_outputs(evidence, "forget")
        ]
        verdict = compared(own, others, seed=evidence.seed)
        return self.finding(
            shares["unlearned"],
            samples=len(own),
            interval=wilson(float(own.sum()), len(own)),
            controls=controls(shares),
            details={"sets": _sets(evidence), "masked": evidence.head_masked},
            verdict="no verdict" if evidence.head_masked else verdict,
            note=HIDDEN if evidence.head_masked else "",
        )


def _right(evidence: Evidence, split: str, found: Outputs) -> Tensor:
    """Return correctness per sample; that of its other labels says nothing of a forgotten one."""
    several = found.labels.ndim == 2 and evidence.goal == "classes"
    if not several or not split.endswith("forget"):
        return hits(found)
    gone = list(evidence.forget_classes)
    carried = found.labels[:, gone] > 0.5
    still = (found.logits[:, gone] > 0) & carried
    return still.double().sum(dim=1) / carried.sum(dim=1).clamp(min=1)


def _sets(evidence: Evidence) -> dict[str, object]:
    """Return, for each set, its size and every model's accuracy with its interval."""
    table: dict[str, object] = {}
    for split in SPLITS:
        right = {
            role: _right(evidence, split, outputs(evidence, role, split))
            for role in roles_with(evidence, split)
        }
        if right:
            table[split] = {
                "samples": max(len(values) for values in right.values()),
                "accuracy": {role: float(values.mean()) for role, values in right.items()},
                "interval": {
                    role: list(wilson(float(values.sum()), len(values)))
                    for role, values in right.items()
                },
            }
    return table
