"""How fast forgotten samples come back, against a model that never saw them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

from forgetkit.auditing.evidence import Evidence, Missing, Role, Subject
from forgetkit.auditing.readings import hits, outputs, retrained
from forgetkit.auditing.relearned import Lessons, Progress, mean_over, relearn
from forgetkit.auditing.relearning import arrivals_verdict
from forgetkit.draws import uniform
from forgetkit.fields import bounded
from forgetkit.losses import accuracy
from forgetkit.metric import Finding, Metric, MetricCard, Verdict, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class Anamnesis(Metric):
    """How many steps relearning takes, divided by those that a retrained model needs.

        AIN = t(model) / t(retrained),  t = min {step: acc(D_f) >= (1 - margin) acc_original(D_f)}

    Copies are trained by SGD on batches drawn from D_f and D_r together, the same ones for every
    model; t is the lower median over ``repeats`` draws, both accuracies are of the same forget
    samples, at most ``samples``. A model that never arrives gives a bound in the note, not a
    number; 0 steps count as half a step.

    Verdict: ``residual`` with fewer steps than every retrained model, ``over-forgotten`` with more
        than twice those of the slowest, ``not decidable`` when neither the model nor the slowest
        arrives.

    Source: Chundawat, Tarun, Mandal, Kankanhalli, "Zero-Shot Machine Unlearning", IEEE TIFS 2023,
        arXiv:2201.05629.

    Differences: batch statistics and dropout stay frozen, so that every model gets the same
        lessons.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="anamnesis",
        title="Anamnesis index (AIN)",
        group="score",
        level="standard",
        range="[0, infinity), a ratio of steps",
        good="1",
        bad="Below 1 something was left that makes relearning fast; far above 1 it stands out.",
        needs="the original and a retrained model, the forget and retain sets",
        cost="at most `repeats` x `steps` x `batch_size` FB and an F of D_f a look, per model",
        source="Chundawat et al. 2023, IEEE TIFS",
        link="https://arxiv.org/abs/2201.05629",
        about="How fast the forgotten samples are relearnt, as a ratio to a retrained model.",
    )

    margin: float = bounded(0.1, 0.0, 1.0, "alpha, share of the original's accuracy that may lack")
    lr: float = bounded(0.01, 1e-6, 10.0, "learning rate of plain SGD")
    momentum: float = bounded(0.9, 0.0, 0.999, "momentum of SGD")
    batch_size: int = bounded(64, 1, 4096, "samples a step, from both sets together")
    steps: int = bounded(100, 1, 100_000, "steps after which relearning is given up")
    eval_every: int = bounded(5, 1, 1000, "steps between two looks")
    samples: int = bounded(500, 1, 1_000_000, "largest number of forget samples of a look")
    repeats: int = bounded(3, 1, 100, "draws of batches; the lower median of the steps counts")

    def measure(self, evidence: Evidence) -> Finding:
        """Relearn on copies of the model, the retrained and the untrained one."""
        right = hits(outputs(evidence, "original", "forget"))
        evidence.subject("retrained")
        lessons = self._lessons(evidence)
        order = uniform(evidence.seed, "anamnesis", lessons.forget.positions).argsort()
        rows = order[: self.samples].sort().values
        target = float(right[rows].mean()) * (1 - self.margin)
        if target <= 0.0:
            raise Missing("needs an original that is right about some forget samples")
        look = mean_over(lessons.forget.take(rows), evidence.device, accuracy)

        def run(subject: Subject) -> Runs:
            return Runs(
                tuple(
                    relearn(
                        subject.model, replace(lessons, seed=lessons.seed + repeat), look,
                        lambda share: share >= target,
                    )
                    for repeat in range(self.repeats)
                )
            )  # fmt: skip

        roles: tuple[Role, ...] = ("unlearned", "untrained")
        found = {role: run(evidence.subjects[role]) for role in roles if role in evidence.subjects}
        rivals = [run(subject) for subject in retrained(evidence)]
        own, reference = found["unlearned"].steps, rivals[0].steps
        value, note = index(own, reference, self.steps)
        others = {"untrained": found["untrained"].steps} if "untrained" in found else {}
        if len(rivals) > 1:
            others["retrained"] = rivals[1].steps
        ratios = {role: index(steps, reference, self.steps)[0] for role, steps in others.items()}
        return self.finding(
            value,
            samples=len(lessons.forget),
            controls={role: ratio for role, ratio in ratios.items() if ratio is not None},
            details={
                "steps": {role: each.steps for role, each in found.items()},
                "retrained_steps": [each.steps for each in rivals],
                "curves": {role: each.curves() for role, each in found.items()},
                "retrained_curves": [each.curves() for each in rivals],
                "target": target,
                "cap": self.steps,
            },
            verdict=judged(own, [each.steps for each in rivals], self.steps),
            note=note,
        )

    def _lessons(self, evidence: Evidence) -> Lessons:
        forget, retain = evidence.samples("forget"), evidence.samples("retain")
        if len(forget) == 0 or len(retain) == 0:
            raise Missing("needs samples to forget and samples to keep, and a set is empty")
        return Lessons(
            forget, retain, self.batch_size, self.lr, self.momentum, self.steps, self.eval_every,
            evidence.seed, evidence.device,
        )  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """How one model relearns from several draws of the same samples."""

    each: tuple[Progress, ...]

    @property
    def steps(self) -> int | None:
        """The lower median of the steps; ``None`` when more than half never arrive."""
        counted = sorted(inf if one.steps is None else one.steps for one in self.each)
        middle = counted[(len(counted) - 1) // 2]
        return None if middle == inf else int(middle)

    def curves(self) -> list[list[list[float]]]:
        """Return (step, number) at each look, by run."""
        return [[list(pair) for pair in one.curve] for one in self.each]


def index(own: int | None, reference: int | None, cap: int) -> tuple[float | None, str]:
    """Return the anamnesis index and a sentence about its bounds.

    A step count of 0 counts as half a step, so that a model that forgot nothing has an index near
    0 and two such models have 1.
    """
    if own is None and reference is None:
        return None, f"neither model relearns within {cap} steps: the index is not known"
    if own is None:
        bound = cap / max(reference or 0, 0.5)
        return None, f"the model does not relearn within {cap} steps: the index is above {bound:g}"
    if reference is None:
        bound = max(own, 0.5) / cap
        return (
            None,
            f"the retrained model needs more than {cap} steps: the index is below {bound:g}",
        )
    return max(own, 0.5) / max(reference, 0.5), ""


def judged(own: int | None, others: list[int | None], cap: int) -> Verdict:
    """Return the verdict on relearning steps; ``None`` stands for more than the cap."""
    mine, *rest = (inf if steps is None else float(steps) for steps in (own, *others))
    return arrivals_verdict(mine, rest, cap)
