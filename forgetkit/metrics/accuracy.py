"""How often a model is right on each of the four sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from forgetkit.auditing.evidence import SPLITS, Evidence, Outputs
from forgetkit.auditing.excess import needs_classes
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
from forgetkit.fields import flag
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Share of right predictions with Wilson intervals; the headline is the forget set's.

        acc(S) = (1 / |S|) sum_{(x, y) in S} [argmax_c z_c(x) = y]

    z are the logits. Several labels a sample count as the mean over labels of the accuracy at
    probability 0.5; on samples of forgotten classes as the share of their forgotten labels that is
    still predicted. With ``mask_classes`` the maximum is over the kept classes, for every model and
    set: whether kept samples are told apart, wherever else a model would have put them.

    Verdict: ``residual`` when surely more forget samples are right than under every retrained
        model, ``over-forgotten`` when surely fewer; none for a masked head or with
        ``mask_classes``, where the 0 is by construction.

    Source: the sets of Kim, Lee, Woo, AAAI 2024, arXiv:2312.16823; ``mask_classes``: how PGU (Hoang
        et al., WACV 2024) measures models that forgot a class; interval: Wilson, 1927.

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

    mask_classes: bool = flag(False, "leave out the outputs of the forgotten classes; a class goal")

    def measure(self, evidence: Evidence) -> Finding:
        """Count right predictions; a masked head makes the forget accuracy 0 by construction."""
        first = outputs(evidence, "unlearned", "forget")
        if self.mask_classes:
            needs_classes(evidence)
        right = partial(_right, evidence, masked=self.mask_classes)
        own = right("forget", first)
        shares = by_role(evidence, "forget", lambda found: float(right("forget", found).mean()))
        others = [right("forget", found) for found in retrained_outputs(evidence, "forget")]
        verdict = compared(own, others, seed=evidence.seed)
        note = HIDDEN if evidence.head_masked else ""
        if self.mask_classes and not note:
            note = "0 by construction: the forgotten classes are left out of the maximum"
        return self.finding(
            shares["unlearned"],
            samples=len(own),
            interval=wilson(float(own.sum()), len(own)),
            controls=controls(shares),
            details={"sets": _sets(evidence, right), "masked": bool(note)},
            verdict="no verdict" if note else verdict,
            note=note,
        )


def _right(evidence: Evidence, split: str, found: Outputs, *, masked: bool) -> Tensor:
    """Return correctness per sample; that of its other labels says nothing of a forgotten one."""
    if masked:
        gone = list(evidence.forget_classes)
        found = replace(found, logits=found.logits.index_fill(1, torch.tensor(gone), -torch.inf))
    several = found.labels.ndim == 2 and evidence.goal == "classes"
    if not several or not split.endswith("forget"):
        return hits(found)
    gone = list(evidence.forget_classes)
    carried = found.labels[:, gone] > 0.5
    still = (found.logits[:, gone] > 0) & carried
    return still.double().sum(dim=1) / carried.sum(dim=1).clamp(min=1)


def _sets(evidence: Evidence, right_in: Callable[[str, Outputs], Tensor]) -> dict[str, object]:
    """Return, for each set, its size and every model's accuracy with its interval."""
    table: dict[str, object] = {}
    for split in SPLITS:
        right = {
            role: right_in(split, outputs(evidence, role, split))
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
