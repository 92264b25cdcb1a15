"""U-LiRA: per-sample attack against models that were unlearned in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.audit.evidence import Missing
from forgetkit.audit.intervals import wilson
from forgetkit.audit.likelihood import (
    gaussians,
    likelihood_ratio,
    logit_confidence,
    membership_probability,
)
from forgetkit.audit.shadows import load_shadows
from forgetkit.fields import artefact, bounded
from forgetkit.metric import Finding, Metric, MetricCard, Verdict, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.audit.evidence import Evidence


@register_metric
@dataclass(frozen=True, kw_only=True)
class ULiRA(Metric):
    """Ask whether a sample's confidence looks like "trained and unlearned" or like "never seen".

        P(member) = p_in / (p_in + p_out),  densities of phi = log(p / (1 - p))

    Normal densities over shadow models that were trained with the sample and then unlearned by the
    same method ("in") and over models that never saw it ("out"). Headline: balanced accuracy at 0.5
    of telling the unlearned model from held-out "out" models; 0.5 is ideal.

    Verdict: ``residual`` when the interval lies above 0.5, ``as retrain`` otherwise.

    Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations", arXiv:2403.01218;
        Carlini et al., S&P 2022.

    Differences: each "out" model is judged by the others (leave one out); with fewer than 16 models
        of a kind one deviation is pooled over all samples and both kinds.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="ulira",
        title="U-LiRA",
        group="attack",
        level="full",
        range="[0, 1], balanced accuracy",
        good="0.5",
        bad="For single samples, an attacker tells unlearned from never seen.",
        needs="logits of 5 unlearned models and 5 that never saw the forget set, in a file",
        cost="64 trainings and 32 runs of the method; then a second",
        source="Hayes et al. 2024, arXiv",
        link="https://arxiv.org/abs/2403.01218",
        about="How well each sample's confidence tells unlearned models from models without it.",
    )

    shadows: str | None = artefact("file with logits of shadow models on D_f (save_shadows)")
    fewest: int = bounded(4, 2, 10000, "fewest shadow models of each kind")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the balanced accuracy of the attack."""
        own = evidence.of("unlearned", "forget")
        found = load_shadows(self.shadows, own.labels)
        sizes = (len(found.unlearned), len(found.unseen))
        if min(sizes) < self.fewest + 1:
            raise Missing(
                f"needs at least {self.fewest + 1} unlearned and as many unseen shadow models, "
                f"found {sizes[0]} and {sizes[1]}"
            )
        inside, outside = (
            logit_confidence(part, own.labels) for part in (found.unlearned, found.unseen)
        )

        def probability(target: Tensor, out: Tensor) -> Tensor:
            return membership_probability(likelihood_ratio(target, *gaussians(inside, out)))

        called = probability(logit_confidence(own.logits, own.labels), outside)
        held = torch.stack(
            [
                probability(one, torch.cat([outside[:at], outside[at + 1 :]]))
                for at, one in enumerate(outside)
            ]
        )
        hits = (called > 0.5).double()
        rejections = (held <= 0.5).double().mean(dim=1)
        value = 0.5 * float(hits.mean() + rejections.mean())
        low, high = wilson(int(hits.sum()), len(hits))
        spread = 1.96 * float(rejections.std()) / len(rejections) ** 0.5
        ends = (
            max(0.0, 0.5 * (low + float(rejections.mean()) - spread)),
            min(1.0, 0.5 * (high + float(rejections.mean()) + spread)),
        )
        verdict: Verdict = "as retrain"
        if ends[0] > 0.5:
            verdict = "residual"
        return self.finding(
            value,
            samples=len(own),
            interval=ends,
            controls={},
            details={
                "called_member": float(hits.mean()),
                "mean_probability": float(called.mean()),
                "rejected_of_unseen_models": rejections.tolist(),
                "models_in": sizes[0],
                "models_out": sizes[1],
            },
            verdict=verdict,
            note=f"with {min(sizes)} models of each kind, one deviation was pooled"
            if min(sizes) <= 16
            else "",
        )
