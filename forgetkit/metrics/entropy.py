"""How undecided a model is about the forgotten samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from forgetkit.auditing.direction import of_sureness
from forgetkit.auditing.divergence import bins_for, entropy
from forgetkit.auditing.evidence import Evidence
from forgetkit.auditing.intervals import mean_interval
from forgetkit.auditing.readings import (
    log_probs,
    masked_note,
    outputs,
    retrained_outputs,
    roles_with,
)
from forgetkit.auditing.training_spread import compared_trainings, wanting
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class Entropy(Metric):
    """Mean entropy of the predictions on the forget set, with histograms over [0, log K].

        H(p) = -sum_c p_c log p_c

    The details hold the same on test samples and the Wasserstein-1 distance between the entropies
    of the model and of the first retrained one.

    Verdict: ``over-forgotten`` when the mean is surely larger than under every retrained model and
        beyond what another training would make of it, ``residual`` when smaller like that; ``not
        decidable`` without a second retrained model. For wrong labels, and with a single kept
        class, which a retrained model is always sure of, the loss on the forgotten labels tells
        the two apart.

    Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv:2205.08096,
        whose membership attack reads the entropy.

    Differences: behind a masked head the entropy is over the kept classes.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="entropy",
        title="Entropy of predictions",
        group="distribution",
        level="quick",
        range="[0, log classes], nats",
        good="as the retrained model's, or as on unseen samples of the same classes",
        bad="It is conspicuously sure, or unsure, about the samples it was to forget.",
        needs="the forget set; two retrained models for a verdict",
        cost="nothing beyond the collected outputs",
        source="Chundawat et al. 2023, AAAI",
        link="https://arxiv.org/abs/2205.08096",
        about="How undecided predictions on forgotten samples are, as a distribution.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Compare the entropies of all models at hand, also on unseen samples."""
        from scipy.stats import wasserstein_distance

        tables = {
            split: {
                role: entropy(log_probs(evidence, outputs(evidence, role, split)))
                for role in roles_with(evidence, split)
            }
            for split in ("forget", "test_forget", "test_retain")
            if split == "forget" or evidence.has("unlearned", split)
        }
        if "unlearned" not in tables["forget"]:
            outputs(evidence, "unlearned", "forget")
        own = tables["forget"]["unlearned"]
        others = [
            entropy(log_probs(evidence, found)) for found in retrained_outputs(evidence, "forget")
        ]
        classes = len(evidence.kept_classes) if evidence.head_masked else evidence.num_classes
        largest = math.log(classes) if classes > 1 else 1.0
        means = {name: {r: float(v.mean()) for r, v in t.items()} for name, t in tables.items()}
        details: dict[str, object] = {
            "sets": means,
            "normalised": float(own.mean()) / largest,
            "histograms": {
                name: {role: _heights(each, largest, len(own)) for role, each in table.items()}
                for name, table in tables.items()
            },
            "histogram_range": [0.0, largest],
            "retrained": [float(each.mean()) for each in others],
        }
        if others:
            details["wasserstein"] = float(wasserstein_distance(own.numpy(), others[0].numpy()))
        return self.finding(
            float(own.mean()),
            samples=len(own),
            interval=mean_interval(own, seed=evidence.seed),
            controls={role: v for role, v in means["forget"].items() if role != "unlearned"},
            details=details,
            verdict=of_sureness(
                evidence, compared_trainings(own, others, seed=evidence.seed, more="over-forgotten")
            ),
            note="; ".join(filter(None, [masked_note(evidence), wanting(len(others), 2)])),
        )


def _heights(values: Tensor, largest: float, samples: int) -> list[float]:
    """Return the share of samples in each of the common bins."""
    counts = torch.histc(values.clamp(max=largest), bins_for(samples), min=0.0, max=largest)
    return (counts / max(len(values), 1)).tolist()
