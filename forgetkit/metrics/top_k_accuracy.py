"""How often the true class is among the k most likely ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from forgetkit.auditing.evidence import SPLITS, Evidence, Missing, Outputs
from forgetkit.auditing.intervals import compared, wilson
from forgetkit.auditing.readings import (
    HIDDEN,
    by_role,
    controls,
    outputs,
    retrained_outputs,
    single_label,
)
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class TopKAccuracy(Metric):
    """Share of forget samples whose true class is among the k likeliest ones.

        acc_k = (1 / |D_f|) sum_{(x, y) in D_f} [fewer than k classes come before y]

    Classes come in the order of falling logits; of equal ones the lower index is first, as it is
    for the prediction, so that acc_1 is the accuracy.

    Verdict: as for ``accuracy``: ``residual`` when surely more than under every retrained model,
        ``over-forgotten`` when surely fewer, none for a masked head.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.

    Differences: accuracy instead of error, and k = 2 instead of 5: a class that was pushed just
        behind the first place is then seen.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="top_k_accuracy",
        title="Top-k accuracy",
        group="accuracy",
        level="quick",
        range="[0, 1], share of samples",
        good="forgotten samples: as a model that never saw them",
        bad="The forgotten class is no longer first, but still among the first guesses.",
        needs="the forget set and more than k classes; a retrained model for a verdict",
        cost="nothing beyond the collected outputs",
        source="Russakovsky et al. 2015, IJCV",
        link="https://arxiv.org/abs/1409.0575",
        about="How often the true class is among the k most likely ones.",
    )

    k: int = bounded(2, 1, 1000, "guesses that count; must be below the number of classes")

    def measure(self, evidence: Evidence) -> Finding:
        """Count the samples whose true class is among the k largest logits."""
        if self.k >= evidence.num_classes:
            raise Missing(f"needs more than {self.k} classes, the k of top-k")
        own = top_k_hits(outputs(evidence, "unlearned", "forget"), self.k)
        shares = by_role(evidence, "forget", self._share)
        others = [top_k_hits(found, self.k) for found in retrained_outputs(evidence, "forget")]
        tables = {
            split: dict(by_role(evidence, split, self._share))
            for split in SPLITS
            if evidence.has("unlearned", split)
        }
        return self.finding(
            shares["unlearned"],
            samples=len(own),
            interval=wilson(float(own.sum()), len(own)),
            controls=controls(shares),
            details={"sets": tables},
            verdict="no verdict"
            if evidence.head_masked
            else compared(own, others, seed=evidence.seed),
            note=HIDDEN if evidence.head_masked else "",
        )

    def _share(self, found: Outputs) -> float:
        return float(top_k_hits(found, self.k).mean())


def top_k_hits(found: Outputs, k: int) -> Tensor:
    """Return whether the true class is among the k largest logits, (samples,) float64.

    Of equal logits the one with the lower index counts as larger, as in ``argmax``.
    """
    logits, labels = single_label(found).logits, found.labels[:, None]
    own = logits.gather(1, labels)
    lower = torch.arange(logits.shape[1]) < labels
    before = (logits > own) | ((logits == own) & lower)
    return (before.sum(dim=1) < k).double()
