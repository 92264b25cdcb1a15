"""Adversarial recovery: how small a change of the input brings the forgotten class back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.evidence import ROLES
from forgetkit.auditing.excess import needs_classes, references, surely_above
from forgetkit.auditing.intervals import wilson
from forgetkit.auditing.neighbourhood import (
    answer_of,
    dtype_of,
    images,
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

RADII = (2, 4, 8)


@register_metric
@dataclass(frozen=True, kw_only=True)
class AdversarialRecovery(Metric):
    """Attack images so that the model answers with a forgotten class.

        x <- clip(x + a sign(grad o(x))) within |x - x_0|_inf <= radius,  a = 2.5 radius / steps

    o = log odds of the forgotten classes. Headline: share of D_f that is answered with a forgotten
    class; the same from test images of kept classes and at other radii stands in the details.
    Easier from D_f than from other images is a trace. A masked output is never reached, so then
    every model answers with its nearest class mean.

    Verdict: ``residual`` when the share exceeds every retrained model's by more than two standard
        errors, ``as retrain`` otherwise.

    Source: the attack is that of Madry et al., "Towards Deep Learning Models Resistant to
        Adversarial Attacks", ICLR 2018, arXiv:1706.06083.

    Differences: the radius counts in parts of the pixel range; steps follow the log odds, which do
        not vanish.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="adversarial_recovery",
        title="Adversarial recovery",
        group="audit",
        level="standard",
        range="[0, 1], share of forget samples that reach a forgotten class",
        good="not above that of a retrained model, nor above that from other images",
        bad="An invisible change of an image makes the model name the forgotten class again.",
        needs="forget images; whole classes forgotten; a retrained model for a verdict",
        cost="60 FB over at most 200 samples for each model",
        source="Madry et al. 2018, ICLR",
        link="https://arxiv.org/abs/1706.06083",
        about="How often a small attack on the input reaches the forgotten class.",
        reads="disturbed",
    )

    radius: int = bounded(4, 0, 255, "L-infinity radius of the headline, in 255ths of the range")
    steps: int = bounded(20, 1, 1000, "of the attack")
    most: int = bounded(100, 2, 100000, "largest number of images of each kind")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the share of D_f that reaches a forgotten class."""
        needs_classes(evidence)
        own = evidence.subject("unlearned")
        starts = {"forget": images(evidence.samples("forget"), self.most, evidence, dtype_of(own))}
        if "test_retain" in evidence.sets:
            other = evidence.samples("test_retain")
            starts["test_retain"] = images(other, self.most, evidence, dtype_of(own))
        limits = value_range([inputs for inputs, _ in starts.values()])
        gone = torch.zeros(evidence.num_classes, dtype=torch.bool, device=evidence.device)
        gone[list(evidence.forget_classes)] = True

        def reached(subject: Subject) -> dict[str, dict[int, Tensor]]:
            with evaluating(subject.model):
                answer = answer_of(subject, evidence, open_head=evidence.head_masked)
                found: dict[str, dict[int, Tensor]] = {}
                for name, (inputs, _) in starts.items():
                    found[name] = {}
                    for radius in sorted({0, *RADII, self.radius}):
                        moved = inputs
                        if radius > 0:
                            moved = towards(
                                inputs, answer, lambda logits: gone.expand(logits.shape), limits,
                                epsilon=radius / 255, steps=self.steps,
                            )  # fmt: skip
                        predicted = logits_over(moved, answer).argmax(dim=1)
                        found[name][radius] = gone.cpu()[predicted].double()
            return found

        found = {
            role: reached(evidence.subjects[role]) for role in ROLES if role in evidence.subjects
        }
        others = [
            found["retrained"]
            if subject is evidence.subjects.get("retrained")
            else reached(subject)
            for subject in references(evidence)
        ]
        hits = found["unlearned"]["forget"][self.radius]
        verdict = surely_above([hits - other["forget"][self.radius] for other in others])
        return self.finding(
            float(hits.mean()),
            samples=len(hits),
            interval=wilson(int(hits.sum()), len(hits)),
            controls={
                role: float(one["forget"][self.radius].mean())
                for role, one in found.items()
                if role != "unlearned"
            },
            details={
                "share": {role: _plain(one) for role, one in found.items()},
                "references": [_plain(other) for other in others],
                "pixel_range": limits.describe(),
                "head": "nearest class mean" if evidence.head_masked else "own",
            },
            verdict=verdict,
            note="" if others else "no retrained model to compare with",
        )


def _plain(found: dict[str, dict[int, Tensor]]) -> dict[str, dict[str, float]]:
    return {
        name: {f"{radius}/255": float(hits.mean()) for radius, hits in by_radius.items()}
        for name, by_radius in found.items()
    }
