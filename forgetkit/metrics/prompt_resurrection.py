"""Prompt resurrection: a learnt border of the image recalls the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.evidence import ROLES, Missing
from forgetkit.auditing.excess import excess, needs_classes, references
from forgetkit.auditing.intervals import wilson
from forgetkit.auditing.neighbourhood import answer_of, dtype_of, images, logits_over, value_range
from forgetkit.auditing.resurrection import border_size, learnt_prompt, prompted
from forgetkit.engine.modes import evaluating
from forgetkit.engine.place import moved_inputs
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric
from forgetkit.pixels import gathered, pixels_of

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Subject


@register_metric
@dataclass(frozen=True, kw_only=True)
class PromptResurrection(Metric):
    """Learn an additive border that makes a frozen model name the forgotten class again.

        d = argmin_d sum_{(x, y)} CE(f(x + d), y),  d = 0 inside the border

    Adam on the border's pixels, true labels, forget and retain images in equal number; headline:
    accuracy on unseen samples of the forgotten classes with the border. A masked output is never
    reached, so then every model answers with its nearest class mean.

    Verdict: ``residual`` when more than two standard errors above the mean of the retrained models,
        which get a border of the same size, ``as retrain`` otherwise.

    Source: visual prompts of Bahng et al., "Exploring Visual Prompts for Adapting Large-Scale
        Models", arXiv:2203.17274, as an audit.

    Differences: the border form for every model that reads images, transformers included.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="prompt_resurrection",
        title="Prompt resurrection (learnt border)",
        group="audit",
        level="full",
        range="[0, 1], accuracy on unseen samples of the forgotten classes",
        good="not above that of a retrained model with a border of the same size",
        bad="A frame around the image recalls the forgotten class from the frozen model.",
        needs="images of all sets; whole classes forgotten; a retrained model for a verdict",
        cost="200 FB batches of 100 samples for each model",
        source="Bahng et al. 2022, arXiv",
        link="https://arxiv.org/abs/2203.17274",
        about="How much of the class a learnt border of the image brings back.",
        reads="disturbed",
    )

    border: int | None = bounded(None, 1, 1000, "width in pixels; default an eighth of the image")
    shots: int = bounded(50, 1, 10000, "forget images, and as many retain images; k")
    steps: int = bounded(200, 0, 10000, "of Adam")
    lr: float = bounded(0.01, 0.0, 1.0, "step size in parts of the pixel range")
    most_tests: int = bounded(200, 1, 100000, "largest number of test samples of each kind")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the accuracy with the border."""
        needs_classes(evidence)
        dtype = dtype_of(evidence.subject("unlearned"))
        learnt = [
            images(evidence.samples(split), self.shots, evidence, dtype)
            for split in ("forget", "retain")
        ]
        tests = {
            split: images(evidence.samples(split), self.most_tests, evidence, dtype)
            for split in ("test_forget", "test_retain")
            if split in evidence.sets
        }
        if "test_forget" not in tests:
            raise Missing("needs test samples of the forgotten classes, which were not given")
        inputs = moved_inputs(gathered([one for one, _ in learnt]), evidence.device, dtype)
        labels = torch.cat([own for _, own in learnt])
        shape = pixels_of(inputs)[1].shape
        if len(shape) != 4:
            raise Missing(f"needs images (batch, channels, height, width), found {tuple(shape)}")
        border = self.border or max(1, min(shape[-2:]) // 8)
        limits = value_range([inputs])

        def recalled(subject: Subject) -> dict[str, Tensor]:
            with evaluating(subject.model):
                answer = answer_of(subject, evidence, open_head=evidence.head_masked)
                prompt = learnt_prompt(
                    inputs, labels, answer, limits, border=border, steps=self.steps, lr=self.lr,
                    batch_size=100, seed=evidence.seed,
                )  # fmt: skip
                found = {}
                for split, (seen, own) in tests.items():
                    for name, shown in (
                        (split, prompted(seen, prompt, limits)),
                        (f"{split} without", seen),
                    ):
                        predicted = logits_over(shown, answer).argmax(dim=1)
                        found[name] = (predicted == own.cpu()).double()
            return found

        models = {role: evidence.subjects[role] for role in ROLES if role in evidence.subjects}
        found = {role: recalled(subject) for role, subject in models.items()}
        others = [
            found["retrained"]["test_forget"]
            if subject is evidence.subjects.get("retrained")
            else recalled(subject)["test_forget"]
            for subject in references(evidence)
        ]
        hits = found["unlearned"]["test_forget"]
        value, error, verdict = excess({"unlearned": hits[None]}, [other[None] for other in others])
        return self.finding(
            float(hits.mean()),
            samples=len(hits),
            interval=wilson(int(hits.sum()), len(hits)),
            controls={
                role: float(one["test_forget"].mean())
                for role, one in found.items()
                if role != "unlearned"
            },
            details={
                "accuracy": {
                    role: {split: float(right.mean()) for split, right in one.items()}
                    for role, one in found.items()
                },
                "excess": value,
                "standard_error": error,
                "border": border,
                "parameters": border_size(int(shape[1]), int(shape[2]), int(shape[3]), border),
                "head": "nearest class mean" if evidence.head_masked else "own",
            },
            verdict=verdict,
            note="" if others else "no retrained model to compare with",
        )
