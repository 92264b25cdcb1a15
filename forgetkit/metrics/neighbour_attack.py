"""Neighbour-class attack: how the forgotten samples spread over the other classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.attacks import (
    auc,
    blocked_mask,
    bootstrap_auc,
    class_order,
    cross_scores,
    interval,
    neighbour_profile,
)
from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.excess import references
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, Verdict, register_metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Role, Subject


@register_metric
@dataclass(frozen=True, kw_only=True)
class NeighbourAttack(Metric):
    """Tell an unlearned model from a retrained one by its answers on D_f.

        q_c = p_c / sum of p over kept classes,  ordered by falling cos(m_c, m_y)

    m are class means of features, y the sample's class: how an answer spreads, nearest class first.
    A logistic regression, five-fold over samples, tells rows of the unlearned from rows of the
    retrained model. Headline: its AUC, 0.5 when they answer alike.

    Verdict: ``residual`` when the interval lies above 0.5 and above those of all further retrained
        models against the first; otherwise ``as retrain``, but ``not decidable`` unless that of
        the original lies above 0.5, which shows that the attack finds anything, and with fewer
        than three retrained models.

    Source: Ebrahimpour-Boroojeny, Wang, Sundaram, class membership inference attack, ICML 2026,
        arXiv:2506.20893.

    Differences: a simple form; both rows of a sample stay in one fold; further retrained models as
        yardstick, because two of them differ as well.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="neighbour_attack",
        title="Neighbour-class attack (CMIA)",
        group="attack",
        level="full",
        range="[0, 1], area under the ROC curve",
        good="not above that between two retrained models; 0.5 when they answer alike",
        bad="The way in which the forgotten samples spread over other classes betrays the edit.",
        needs="a retrained model, three for a verdict; features of forget and retain samples",
        cost="no F beyond collecting; seconds",
        source="Ebrahimpour-Boroojeny, Wang, Sundaram 2026, ICML",
        link="https://arxiv.org/abs/2506.20893",
        about="How well answers on the forget samples tell the model from a retrained one.",
    )

    folds: int = bounded(5, 2, 20, "of the cross-validation over samples")
    resamples: int = bounded(1000, 10, 100000, "bootstrap resamples behind the interval")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the AUC of unlearned against retrained."""
        retrained = [one for one in references(evidence) if "forget" in one.outputs]
        if not retrained:
            raise Missing("needs the retrained model, which was not given")
        own = evidence.of("unlearned", "forget")
        if len(own) < 2 * self.folds:
            raise Missing(f"needs at least {2 * self.folds} samples to forget, found {len(own)}")
        forgotten = evidence.forget_classes if evidence.goal == "classes" else ()
        blocked = blocked_mask(own.labels, forgotten, evidence.num_classes)
        if int((~blocked[0]).sum()) < 2:
            raise Missing("needs at least two classes that are kept")
        source: Role = "original" if evidence.has("original", "retain") else "unlearned"
        features = torch.cat([evidence.features(source, s) for s in ("forget", "retain")])
        labels = torch.cat([evidence.of(source, s).labels for s in ("forget", "retain")])
        order = class_order(features, labels, evidence.num_classes)[own.labels]

        def profile(subject: Subject) -> Tensor:
            logits = subject.outputs["forget"].logits.double()
            return neighbour_profile(logits, blocked, order)

        base = profile(retrained[0])
        named: dict[str, Subject] = {"unlearned": evidence.subject("unlearned")}
        if evidence.has("original", "forget"):
            named["original"] = evidence.subject("original")
        further = ["retrained", *(f"retrained {number}" for number in range(3, len(retrained) + 1))]
        named |= dict(zip(further, retrained[1:], strict=False))
        areas: dict[str, float] = {}
        ends: dict[str, tuple[float, float]] = {}
        profiles = {"reference": base.mean(dim=0).tolist()}
        for role, subject in named.items():
            rows = profile(subject)
            profiles[role] = rows.mean(dim=0).tolist()
            pair = cross_scores(rows, base, folds=self.folds, seed=evidence.seed, paired=True)
            areas[role] = auc(*pair)
            drawn = bootstrap_auc([pair], resamples=self.resamples, seed=evidence.seed)
            ends[role] = interval(drawn[0])
        verdict, note = _judged(ends)
        return self.finding(
            areas["unlearned"],
            samples=len(own),
            interval=ends["unlearned"],
            controls={role: areas[role] for role in ("original", "retrained") if role in areas},
            details={
                "auc": areas,
                "intervals": {role: list(pair) for role, pair in ends.items()},
                "mean_profile_nearest_first": profiles,
            },
            verdict=verdict,
            note=note,
        )


def _judged(ends: Mapping[str, tuple[float, float]]) -> tuple[Verdict, str]:
    """Return the verdict and what limits it, from intervals of AUCs against the same model."""
    low, _ = ends["unlearned"]
    others = [high for role, (_, high) in ends.items() if role.startswith("retrained")]
    if len(others) < 2:
        note = (
            "two retrained models differ as well, by chance more or less: three are needed to "
            f"judge this, and {1 + len(others)} {'were' if others else 'was'} given"
        )
        return "not decidable", note
    if low > max([0.5, *others]):
        return "residual", ""
    if "original" not in ends:
        return "not decidable", "no original to show that the attack finds anything at all"
    if ends["original"][0] <= 0.5:
        note = "the attack finds nothing in the original either, so it shows little"
        return "not decidable", note
    return "as retrain", ""
