"""Relearning attack: a few samples and a few steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.auditing.evidence import ROLES, Missing
from forgetkit.auditing.excess import needs_classes, references
from forgetkit.auditing.relearning import Curve, arrivals_verdict, lesson, relearn
from forgetkit.fields import bounded, flag
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from forgetkit.auditing.evidence import Evidence, Subject

SHOTS = (1, 5, 20)


@register_metric
@dataclass(frozen=True, kw_only=True)
class Relearning(Metric):
    """Teach the class again from k samples and count the steps until half of it is back.

        t = min {step: acc >= acc_original / 2},  acc on unseen samples of the forgotten classes

    SGD with momentum 0.9 on k forget samples a class and 3 k retain samples each step, batch
    statistics and dropout frozen. Three forms: ``as_is``, ``reset`` (the head's rows of the
    forgotten classes start at the mean of the other rows) and ``head`` (reset, only the head is
    trained). As is, the steps mostly measure how far the head's row was pushed down; so the
    headline and the verdict use the reset form: median over repeats, in steps.

    Verdict: ``residual`` with fewer steps than every retrained model; ``over-forgotten`` with more
        than twice those of the slowest; ``as retrain`` otherwise. A model that is back without any
        step, as it is, while no retrained one is, is ``residual`` whatever the reset form says.
        Copies that lose half of their accuracy on kept classes decide nothing: then the step size
        is too large for their weights.

    Source: relearn time of Golatkar et al., CVPR 2020, and of Tarun et al. (few samples).

    Differences: few samples, and rows reset first; see above.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="relearning",
        title="Relearning attack",
        group="audit",
        level="standard",
        range="[0, infinity], steps; infinity when the class does not come back",
        good="between the fastest retrained model and twice the slowest",
        bad="A few images and a few training steps bring the forgotten class back.",
        needs="images of all sets; whole classes forgotten; a retrained model for a verdict",
        cost="at most 100 small FB a form, sample count and repeat, and some F to measure",
        source="Golatkar et al. 2020, CVPR",
        link="https://arxiv.org/abs/1911.04933",
        about="Steps of training on a few samples until half of the forgotten class is back.",
    )

    shots: int = bounded(5, 1, 1000, "forget samples of each class that the attacker has; k")
    steps: int = bounded(100, 1, 10000, "largest number of steps")
    every: int = bounded(1, 1, 1000, "steps between measurements")
    repeats: int = bounded(3, 1, 100, "draws of samples; the median counts")
    lr: float = bounded(0.01, 0.0, 10.0, "step size of SGD")
    most_tests: int = bounded(100, 1, 100000, "largest number of test samples of each kind")
    whole: bool = flag(default=False, about="run to the last step after the class is back, too")
    more_shots: bool = flag(default=True, about="repeat the reset form with 1 and 20 samples")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the median number of steps in the reset form, and all curves."""
        needs_classes(evidence)
        for split in ("forget", "retain", "test_forget"):
            evidence.samples(split)
        target, note = 0.5, "no original: half of all samples counts as back"
        if evidence.has("original", "test_forget"):
            target = 0.5 * float(evidence.of("original", "test_forget").right.double().mean())
            note = ""
        if target == 0.0:
            raise Missing("needs an original that recognises some samples of the forgotten classes")
        models: dict[str, Subject] = {
            role: evidence.subjects[role] for role in ROLES if role in evidence.subjects
        }
        named = {id(subject) for subject in models.values()}
        retrained = {
            f"reference {at}": subject
            for at, subject in enumerate(references(evidence))
            if id(subject) not in named
        }
        ruined: set[str] = set()
        curves: dict[str, object] = {}
        steps: dict[str, dict[str, float]] = {}
        for form in ("reset", "as_is", "head"):
            everyone = models | retrained if form == "reset" else models
            runs = {
                name: self._curves(evidence, subject, form, self.shots, target)
                for name, subject in everyone.items()
            }
            if form == "reset":
                ruined = {name for name, found in runs.items() if _ruined(found)}
            steps[form] = {name: _median(found, target) for name, found in runs.items()}
            curves[form] = {
                name: _plain(found, target, whole=self.whole) for name, found in runs.items()
            }
        by_shots = {str(self.shots): {name: steps["reset"][name] for name in models}}
        if self.more_shots:
            for shots in SHOTS:
                if shots != self.shots:
                    by_shots[str(shots)] = {
                        name: _median(self._curves(evidence, one, "reset", shots, target), target)
                        for name, one in models.items()
                        if name in ("unlearned", "retrained")
                    }
        own = steps["reset"]["unlearned"]
        rivals = [name for name in steps["reset"] if name == "retrained" or name in retrained]
        controls = [steps["reset"][name] for name in rivals if name not in ruined]
        verdict = arrivals_verdict(own, controls, self.steps)
        limit = ""
        if not rivals:
            limit = "no retrained model to compare with"
        elif _known(models["unlearned"], target) and not any(
            _known((models | retrained)[name], target) for name in rivals
        ):
            verdict, limit = "residual", "as it is, the model knows the class without any step"
        elif "unlearned" in ruined or not controls:
            verdict = "not decidable"
            limit = f"steps of {self.lr:g} ruin what a copy knows of kept classes; lower lr"
        elif verdict == "not decidable":
            limit = (
                f"the model does not learn the class within {self.steps} steps, and so few do not "
                "tell how much slower than the retrained models it is; raise steps"
            )
        note = "; ".join(filter(None, (note, limit)))
        arrived = sorted(
            int(k) for k, found in by_shots.items() if found["unlearned"] < float("inf")
        )
        return self.finding(
            own,
            samples=min(len(evidence.samples("test_forget")), self.most_tests),
            controls={
                name: v
                for name, v in steps["reset"].items()
                if name in models and name != "unlearned"
            },
            details={
                "steps_to_half": steps,
                "steps_to_half_by_samples": by_shots,
                "samples_to_half": arrived[0] if arrived else None,
                "target": target,
                "cap": self.steps,
                "curves": curves,
            },
            verdict=verdict,
            note=note,
        )

    def _curves(
        self, evidence: Evidence, subject: Subject, form: str, shots: int, target: float
    ) -> list[Curve]:
        return [
            relearn(
                subject,
                lesson(
                    evidence.samples("forget"), evidence.samples("retain"),
                    evidence.samples("test_forget"), evidence.sets.get("test_retain"),
                    shots=shots, most_tests=self.most_tests, steps=self.steps, every=self.every,
                    lr=self.lr, seed=evidence.seed + repeat, target=None if self.whole else target,
                ),
                form=form, forgotten=evidence.forget_classes, device=evidence.device,
                head=evidence.head,
            )
            for repeat in range(self.repeats)
        ]  # fmt: skip


def _known(subject: Subject, target: float) -> bool:
    """Return whether a model is right often enough as it is."""
    return float(subject.outputs["test_forget"].right.double().mean()) >= target


def _ruined(curves: Sequence[Curve]) -> bool:
    """Return whether most copies end below half of their first accuracy on kept classes."""
    return 2 * sum(curve.kept[-1] < curve.kept[0] / 2 for curve in curves) > len(curves)


def _median(curves: Sequence[Curve], target: float) -> float:
    """Return the lower median: that of an even number is a step that was seen."""
    return statistics.median_low([curve.arrival(target) for curve in curves])


def _plain(curves: Sequence[Curve], target: float, *, whole: bool) -> list[dict[str, object]]:
    return [
        {
            "steps": list(curve.steps),
            "forgotten": list(curve.forgotten),
            "kept": None if math.isnan(curve.kept[0]) else list(curve.kept),  # no test samples
            "steps_to_half": curve.arrival(target),
            # a curve that ends where the class is back has the larger area the later that is
            **({"area": curve.area()} if whole else {}),
        }
        for curve in curves
    ]
