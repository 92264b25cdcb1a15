"""Whether forgotten classes still form groups of their own in the features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from forgetkit.auditing.evidence import Evidence, Missing, Role
from forgetkit.auditing.excess import needs_classes
from forgetkit.auditing.intervals import compared, wilson
from forgetkit.auditing.readings import (
    outputs,
    retrained,
    roles_with,
    single_label,
    together,
)
from forgetkit.draws import uniform
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

SETS = ("test_forget", "test_retain")


@register_metric
@dataclass(frozen=True, kw_only=True)
class Separability(Metric):
    """Share of test samples of the forgotten classes that are nearest to their own class mean.

        s = share of x with |h(x) - m_y| < |h(x) - m_c| for all c != y

    h are the features, m_c their mean over class c; m_y leaves x out. Silhouette of forgotten
    against other samples and the share of ``neighbours`` that have a sample's class stand beside
    it. Classes that a model never saw form groups too: the measure is the retrained model, never 0.

    Verdict: ``residual`` when surely larger than under every retrained model, ``over-forgotten``
        when surely smaller.

    Source: silhouette: Rousseeuw, Journal of Computational and Applied Mathematics, 1987.

    Differences: the share of nearest means is ours and the headline, because a silhouette depends
        on how the other classes lie.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="separability",
        title="Class separability",
        group="representation",
        level="quick",
        range="[0, 1], share of test samples of the forgotten classes",
        good="as under the retrained model",
        bad="The features still hold the forgotten class apart, whatever the output says.",
        needs="features, test samples; whole classes forgotten; a retrained model for a verdict",
        cost="distances between at most `samples` features",
        source="Rousseeuw 1987 (silhouette)",
        link="https://doi.org/10.1016/0377-0427(87)90125-7",
        about="How well class means, neighbours and silhouette tell the forgotten classes apart.",
    )

    samples: int = bounded(2000, 20, 100_000, "largest number of test samples, drawn by the seed")
    neighbours: int = bounded(20, 1, 1000, "neighbours whose class is compared")

    def measure(self, evidence: Evidence) -> Finding:
        """Measure every model on the same samples."""
        needs_classes(evidence)
        for split in SETS:
            outputs(evidence, "unlearned", split)
        views = {role: self._view(evidence, role) for role in roles_with(evidence, *SETS)}
        labels = views["unlearned"][1]
        gone = torch.isin(labels, torch.tensor(evidence.forget_classes))
        if not bool(gone.any()) or len(labels.unique()) < 2:
            raise Missing("needs test samples of at least two classes, forgotten and other ones")
        right = {role: nearest_mean(x, y)[gone] for role, (x, y) in views.items()}
        own = right["unlearned"]
        others = [
            nearest_mean(*self._view(replace(evidence, subjects={"unlearned": subject})))[gone]
            for subject in retrained(evidence)
            if all(split in subject.outputs for split in SETS)
        ]
        means = {role: float(each.mean()) for role, each in right.items()}
        return self.finding(
            means["unlearned"],
            samples=len(own),
            interval=wilson(float(own.sum()), len(own)),
            controls={role: value for role, value in means.items() if role != "unlearned"},
            details={
                "silhouette": {role: silhouette(x, gone) for role, (x, _) in views.items()},
                "purity": {
                    role: float(purity(x, y, self.neighbours)[gone].mean())
                    for role, (x, y) in views.items()
                },
                "test_samples": len(labels),
            },
            verdict=compared(own, others, seed=evidence.seed),
        )

    def _view(self, evidence: Evidence, role: Role = "unlearned") -> tuple[Tensor, Tensor]:
        """Return features and labels of the drawn samples, the same for every model."""
        found = single_label(together(evidence, role, SETS))
        features = found.features
        if features is None:
            raise Missing("needs features, but a model cannot be split into parts")
        order = uniform(evidence.seed, "separability", torch.arange(len(found))).argsort()
        rows = order[: self.samples].sort().values
        return features[rows].double(), found.labels[rows]


def nearest_mean(features: Tensor, labels: Tensor) -> Tensor:
    """Return whether each sample is nearest to its class' mean, (samples,) float64.

    The mean of its own class leaves the sample out, or any class of one would be perfect.
    """
    known, own = labels.unique(return_inverse=True)
    counts = torch.bincount(own).double()
    means = torch.zeros(len(known), features.shape[1], dtype=torch.float64)
    means = means.index_add(0, own, features) / counts[:, None]
    far = torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist")
    rows = torch.arange(len(features))
    # x - mean without x = (x - mean) n / (n - 1)
    far[rows, own] *= torch.where(counts[own] > 1, counts[own] / (counts[own] - 1), torch.inf)
    far = far.nan_to_num(nan=torch.inf)
    right: Tensor = (far.argmin(dim=1) == own) & far[rows, own].isfinite()
    return right.double()


def silhouette(features: Tensor, gone: Tensor) -> float | None:
    """Return the mean silhouette of forgotten against other samples, or ``None`` for one group."""
    from sklearn.metrics import silhouette_score

    if not len(gone) - 1 > 1 or len(gone.unique()) < 2:
        return None
    return float(silhouette_score(features.numpy(), gone.numpy()))


def purity(features: Tensor, labels: Tensor, neighbours: int) -> Tensor:
    """Return the share of a sample's nearest other samples that have its class, (samples,)."""
    count = min(neighbours, len(features) - 1)
    shares: list[Tensor] = []
    for rows in torch.arange(len(features)).split(1024):
        far = torch.cdist(features[rows], features)
        far[torch.arange(len(rows)), rows] = torch.inf
        near = far.topk(count, dim=1, largest=False).indices
        shares.append((labels[near] == labels[rows, None]).double().mean(dim=1))
    return torch.cat(shares)
