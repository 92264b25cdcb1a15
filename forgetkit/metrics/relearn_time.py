"""How many steps bring the loss on forgotten samples back to the original's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.auditing.evidence import Evidence, Missing, Role
from forgetkit.auditing.readings import LARGEST_LOSS, losses, outputs, retrained
from forgetkit.auditing.relearned import Lessons, Progress, mean_over, relearn
from forgetkit.draws import uniform
from forgetkit.fields import bounded
from forgetkit.losses import per_sample_loss
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

TOLERANCE = 1e-5


@register_metric
@dataclass(frozen=True, kw_only=True)
class RelearnTime(Metric):
    """Steps of SGD until the loss on D_f is what it was under the original.

        t = min {step: L(D_f) <= L_original(D_f) + 1e-5},  L the mean cross-entropy

    Copies are trained on batches drawn with replacement from D_f and D_r together, the same ones
    for every model.

    Verdict: none; ``relearning`` and ``anamnesis`` have one, from fewer steps.

    Source: Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020,
        arXiv:1911.04933.

    Differences: steps are counted, not epochs; batch statistics and dropout stay frozen.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="relearn_time",
        title="Relearn time",
        group="score",
        level="full",
        range="[0, cap], steps; not a number when the cap is reached",
        good="as many as a retrained model needs",
        bad="A few steps bring the samples back, so the information was still there.",
        needs="the original model, the forget and retain sets; a retrained model to compare with",
        cost="at most `epochs` passes of FB over the training set, an F of D_f a look, per model",
        source="Golatkar et al. 2020, CVPR",
        link="https://arxiv.org/abs/1911.04933",
        about="How many steps of training bring the loss on forgotten samples back.",
    )

    lr: float = bounded(0.01, 1e-6, 10.0, "learning rate of plain SGD; SCRUB's code has 0.1")
    batch_size: int = bounded(500, 1, 4096, "samples a step, with replacement, of the whole set")
    epochs: int = bounded(100, 1, 10_000, "passes after which relearning is given up")
    steps: int | None = bounded(None, 1, 1_000_000, "further bound on the steps")
    eval_every: int = bounded(1, 1, 1000, "steps between two looks at the loss")
    samples: int = bounded(500, 1, 1_000_000, "largest number of forget samples of a look")

    def measure(self, evidence: Evidence) -> Finding:
        """Relearn on copies of the model, the retrained and the untrained one."""
        before = losses(outputs(evidence, "original", "forget"))
        lessons = self._lessons(evidence)
        order = uniform(evidence.seed, "relearn_time", lessons.forget.positions).argsort()
        rows = order[: self.samples].sort().values
        target = float(before[rows].mean()) + TOLERANCE
        look = mean_over(
            lessons.forget.take(rows),
            evidence.device,
            lambda logits, labels: per_sample_loss(logits, labels).clamp(max=LARGEST_LOSS),
        )

        def run(role: Role) -> Progress:
            model = evidence.subject(role).model
            return relearn(model, lessons, look, lambda loss: loss <= target)

        roles: list[Role] = ["unlearned", "retrained", "untrained"]
        found = {role: run(role) for role in roles if role in evidence.subjects}
        own = found["unlearned"].steps
        return self.finding(
            None if own is None else float(own),
            samples=len(lessons.forget),
            controls={
                role: float(each.steps)
                for role, each in found.items()
                if role != "unlearned" and each.steps is not None
            },
            details={
                "curves": {role: [list(p) for p in each.curve] for role, each in found.items()},
                "target": target,
                "cap": lessons.steps,
                "retrained_models": len(retrained(evidence)),
            },
            note="" if own is not None else f">{lessons.steps} steps: the loss never came back",
        )

    def _lessons(self, evidence: Evidence) -> Lessons:
        forget, retain = evidence.samples("forget"), evidence.samples("retain")
        if len(forget) == 0 or len(retain) == 0:
            raise Missing("needs samples to forget and samples to keep, and a set is empty")
        epoch = -(-(len(forget) + len(retain)) // self.batch_size)
        steps = min(self.epochs * epoch, self.steps or self.epochs * epoch)
        return Lessons(
            forget, retain, self.batch_size, self.lr, 0.0, steps, self.eval_every, evidence.seed,
            evidence.device,
        )  # fmt: skip
