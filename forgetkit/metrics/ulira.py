"""U-LiRA: per-sample attack against models that were unlearned in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.intervals import wilson
from forgetkit.auditing.likelihood import (
    POOL_BELOW,
    gaussians,
    likelihood_ratio,
    logit_confidence,
    membership_probability,
)
from forgetkit.auditing.readings import masked_note
from forgetkit.auditing.shadows import load_shadows
from forgetkit.fields import artefact, bounded
from forgetkit.metric import Finding, Metric, MetricCard, Verdict, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence


WORKS = 0.55
"""Balanced accuracy on models that kept the samples from which the attack counts as working."""


@register_metric
@dataclass(frozen=True, kw_only=True)
class ULiRA(Metric):
    """Ask whether a sample's confidence looks like "trained and unlearned" or like "never seen".

        P(member) = p_in / (p_in + p_out),  densities of phi = log(p / (1 - p))

    Normal densities over shadow models that were trained with the sample and then unlearned by the
    same method ("in") and over models that never saw it ("out"). Headline: balanced accuracy at 0.5
    of telling the unlearned model from held-out "out" models; 0.5 is ideal.

    Verdict: ``residual`` when the interval lies above 0.5; otherwise ``as retrain``, but ``not
        decidable`` unless the attack finds the samples in the models of the file that were trained
        on them and not unlearned, which are the control.

    Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations", arXiv:2403.01218;
        Carlini et al., S&P 2022.

    Differences: each "out" model is judged by the others (leave one out); where fewer than 16
        models of a kind are left so, one deviation is pooled over all samples and both kinds, for
        the model under audit as well. The interval holds how much single models differ, as much as
        the "out" models do.
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
        target, (inside, outside, before) = _confidences(
            evidence, own.logits, own.labels, (found.unlearned, found.unseen, found.seen)
        )

        called = _membership(target, inside, outside, pooled=_few(inside, outside))
        rejections = _rejections(inside, outside)
        hits = (called > 0.5).double()
        value = 0.5 * float(hits.mean() + rejections.mean())
        ends = _ends(hits, rejections)
        original, works = None, False
        if len(before) > self.fewest:
            original, error = _control(before, outside)
            works = original > max(0.5 + 1.96 * error, WORKS)
        verdict: Verdict = "as retrain" if works else "not decidable"
        if ends[0] > 0.5:
            verdict = "residual"
        notes = []
        if _few(inside, outside):
            notes.append(f"with {min(sizes)} models of each kind, one deviation was pooled")
        if not works:
            notes.append(
                "the file holds no models that were trained on the samples and kept: nothing shows "
                "that the attack finds anything"
                if original is None
                else "the attack finds nothing in models that were trained on the samples either"
            )
        notes.append(masked_note(evidence))
        return self.finding(
            value,
            samples=len(own),
            interval=ends,
            controls={} if original is None else {"original": original},
            details={
                "called_member": float(hits.mean()),
                "mean_probability": float(called.mean()),
                "rejected_of_unseen_models": rejections.tolist(),
                "models_in": sizes[0],
                "models_out": sizes[1],
            },
            verdict=verdict,
            note="; ".join(filter(None, notes)),
        )


def _ends(hits: Tensor, rejections: Tensor) -> tuple[float, float]:
    """Return an interval of the balanced accuracy.

    Args:
        hits: (samples,) whether each was called a member in the model under audit.
        rejections: (models,) share not called a member in each "out" model.
    """
    share, rejected = float(hits.mean()), float(rejections.mean())
    # What one training shares among its samples no number of samples averages out.
    one_model = 1.96 * float(rejections.std())
    several = one_model / len(rejections) ** 0.5
    low, high = wilson(int(hits.sum()), len(hits))
    low, high = min(low, share - one_model), max(high, share + one_model)
    return max(0.0, 0.5 * (low + rejected - several)), min(1.0, 0.5 * (high + rejected + several))


def _control(seen: Tensor, unseen: Tensor) -> tuple[float, float]:
    """Return how well the same attack tells models that kept the samples from those without.

    Args:
        seen: (models, samples) phi of models that were trained on the samples.
        unseen: the same of models that were not.

    Returns:
        Balanced accuracy, every model judged by the others, and its standard error over models.
    """
    few = _few(seen, unseen)
    called = torch.stack(
        [
            (_membership(one, _without(seen, at), unseen, pooled=few) > 0.5).double().mean()
            for at, one in enumerate(seen)
        ]
    )
    rejections = _rejections(seen, unseen)
    error = 0.5 * float(called.var() / len(called) + rejections.var() / len(rejections)) ** 0.5
    return 0.5 * float(called.mean() + rejections.mean()), error


def _few(inside: Tensor, outside: Tensor) -> bool:
    """Return whether one deviation is pooled: for every model, or left-out ones would differ."""
    return min(len(inside), len(outside)) - 1 < POOL_BELOW


def _membership(asked: Tensor, inside: Tensor, outside: Tensor, *, pooled: bool) -> Tensor:
    """Return the probability of membership of each sample under one model, (samples,)."""
    densities = gaussians(inside, outside, pooled=pooled)
    return membership_probability(likelihood_ratio(asked, *densities))


def _rejections(inside: Tensor, outside: Tensor) -> Tensor:
    """Return for each "out" model, judged by the others, the share of samples not called member."""
    few = _few(inside, outside)
    held = [
        _membership(one, inside, _without(outside, at), pooled=few)
        for at, one in enumerate(outside)
    ]
    return (torch.stack(held) <= 0.5).double().mean(dim=1)


def _without(models: Tensor, at: int) -> Tensor:
    return torch.cat([models[:at], models[at + 1 :]])


def _confidences(
    evidence: Evidence, own: Tensor, labels: Tensor, shadows: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor]]:
    """Return phi of the model, (samples,), and of the shadow models, (models, samples) each.

    Behind a masked head it is that of the kept class that the models without the samples answer
    most, over the kept classes.

    Raises:
        Missing: no class is kept.
    """
    if not evidence.head_masked:
        return logit_confidence(own, labels), [logit_confidence(one, labels) for one in shadows]
    if not evidence.kept_classes:
        raise Missing("needs at least one class that is kept")
    columns = list(evidence.kept_classes)
    kept = [one[..., columns].double().log_softmax(dim=-1) for one in (own, *shadows)]
    likeliest = kept[2].exp().mean(dim=0).argmax(dim=-1)
    target, *others = (logit_confidence(one, likeliest) for one in kept)
    return target, others
