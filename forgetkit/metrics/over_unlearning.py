"""Over-unlearning around the forgotten samples: OU@epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.attacks import renormalised
from forgetkit.auditing.evidence import ROLES
from forgetkit.auditing.excess import needs_classes, references, surely_above
from forgetkit.auditing.neighbourhood import (
    answer_of,
    dtype_of,
    images,
    jensen_shannon,
    logits_over,
    towards,
    value_range,
)
from forgetkit.engine.modes import evaluating
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Subject


@register_metric
@dataclass(frozen=True, kw_only=True)
class OverUnlearning(Metric):
    """Compare answers around D_f with what the original says about the kept classes.

        OU = (1 / |D_f|) sum_{x in D_f} JS(p_0(x'), p(x')),  JS in bits

    x' is x moved, within ``epsilon``, towards the kept class that the original finds likeliest; p_0
    are the original's probabilities without the forgotten classes, made to sum to 1, p the model's.

    Verdict: ``over-forgotten`` when larger than every retrained model's by more than two standard
        errors, ``as retrain`` otherwise. What a model still says of the forgotten classes adds to
        the value, too, of the original most of all: when the same over kept classes alone is not
        larger, ``not decidable``.

    Source: Ha, Park, Yoon, "Unlearning's Blind Spots", ICML 2026, arXiv:2506.01318, section 4.

    Differences: the radius counts in parts of the range of pixels that D_f has.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="over_unlearning",
        title="Over-unlearning near the forgotten samples (OU@epsilon)",
        group="audit",
        level="standard",
        range="[0, 1], bits",
        good="0, or as the retrained model's",
        bad="The model lost what it knew about kept classes close to the forgotten ones.",
        needs="the original; forget images of whole classes; a retrained model for a verdict",
        cost="three FB over at most 200 samples, and an F for each model",
        source="Ha, Park, Yoon 2026, ICML",
        link="https://arxiv.org/abs/2506.01318",
        about="How far the model moved near the boundary to the neighbours of the forgotten class.",
        reads="disturbed",
    )

    epsilon: float = bounded(0.03, 0.0, 1.0, "L-infinity radius in parts of the pixel range")
    steps: int = bounded(3, 1, 1000, "of the attack")
    most: int = bounded(200, 2, 100000, "largest number of forget samples")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the mean divergence in bits."""
        needs_classes(evidence)
        original = evidence.subject("original")
        inputs, _ = images(evidence.samples("forget"), self.most, evidence, dtype_of(original))
        blocked = torch.zeros(evidence.num_classes, dtype=torch.bool, device=evidence.device)
        blocked[list(evidence.forget_classes)] = True

        def runner_up(logits: Tensor) -> Tensor:
            best = logits.float().masked_fill(blocked, -torch.inf).argmax(dim=1)
            return torch.nn.functional.one_hot(best, logits.shape[1]).bool()

        with evaluating(original.model):
            answer = answer_of(original, evidence, open_head=False)
            moved = towards(
                inputs, answer, runner_up, value_range([inputs]),
                epsilon=self.epsilon, steps=self.steps,
            )  # fmt: skip
            wanted = renormalised(logits_over(moved, answer), blocked.cpu()).exp()

        def divergences(subject: Subject) -> tuple[Tensor, Tensor]:
            """Return them over all classes, and over the kept ones alone."""
            with evaluating(subject.model):
                logits = logits_over(moved, answer_of(subject, evidence, open_head=False))
            kept = renormalised(logits, blocked.cpu()).exp()
            over_all, over_kept = (
                jensen_shannon(wanted, one) / math.log(2) for one in (logits.softmax(dim=1), kept)
            )
            return over_all, over_kept

        both = {role: divergences(one) for role, one in evidence.subjects.items()}
        rivals = [
            both["retrained"]
            if subject is evidence.subjects.get("retrained")
            else divergences(subject)
            for subject in references(evidence)
        ]
        found = {role: pair[0] for role, pair in both.items()}
        others = [pair[0] for pair in rivals]
        own = found["unlearned"]
        spread = 1.96 * float(own.std()) / math.sqrt(len(own)) if len(own) > 1 else 0.0
        verdict = surely_above([own - other for other in others])
        note = "" if others else "no retrained model to compare with"
        if verdict == "residual":  # more than retraining is too much here
            verdict = "over-forgotten"
            kept = both["unlearned"][1]
            if surely_above([kept - other for _, other in rivals]) != "residual":
                verdict = "not decidable"
                note = "it is what the model still says of the forgotten classes that is large"
        return self.finding(
            float(own.mean()),
            samples=len(own),
            interval=(max(0.0, float(own.mean()) - spread), float(own.mean()) + spread),
            controls={
                role: float(found[role].mean())
                for role in ROLES
                if role in found and role != "unlearned"
            },
            details={
                "nats": float(own.mean()) * math.log(2),
                "references": [float(other.mean()) for other in others],
                "kept_classes_alone": {role: float(pair[1].mean()) for role, pair in both.items()},
            },
            verdict=verdict,
            note=note,
        )
