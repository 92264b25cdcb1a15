"""Few-shot linear probe for forgotten classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.auditing.probes import probe_predictions
from forgetkit.auditing.recovery import Bank, Recovery
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence

CURVE = (1, 5, 20)


def answered(bank: Bank, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a new linear head on these rows answers on both test sets."""
    asked = [bank.forgotten] if bank.kept is None else [bank.forgotten, bank.kept]
    found = probe_predictions(bank.train[rows], bank.labels[rows], asked)
    return found[0], found[1] if bank.kept is not None else None


@register_metric
@dataclass(frozen=True, kw_only=True)
class LinearProbe(Metric):
    """Fit a new head to frozen features of a few samples of each class.

        excess = acc(unlearned) - acc(retrained),  acc of argmax_c (W h + b)_c

    W, b = multinomial logistic regression, C = 1, balanced, on features h with mean 0 and deviation
    1 on the samples to keep; acc = mean over draws on test samples of the forgotten classes, the
    headline.

    Verdict: ``residual`` when the accuracy exceeds the retrained models' mean by more than two
        standard errors, ``as retrain`` otherwise. Features that are bit for bit the original's need
        no such margin: any excess is ``residual``, and without a retrained model whatever is surely
        above chance.

    Source: Alain, Bengio, "Understanding Intermediate Layers Using Linear Classifier Probes",
        arXiv:1610.01644; knowledge retention as in ESC, CVPR 2025.

    Differences: few samples instead of all, because with many a probe learns the class anew from
        any features, those of an untrained model included; at most ``kept`` kept classes, the same
        for every model, because the cost grows with the square of the number of classes.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="linear_probe",
        title="Few-shot linear probe",
        group="audit",
        level="quick",
        range="[0, 1], accuracy on unseen samples of the forgotten classes",
        good="not above that of a retrained model",
        bad="A handful of labelled images and a new last layer bring the forgotten class back.",
        needs="features of all sets; whole classes forgotten; a retrained model for a verdict",
        cost="no F beyond collecting; seconds",
        source="Alain, Bengio 2016, arXiv",
        link="https://arxiv.org/abs/1610.01644",
        about="How well a new linear head recognises the class from a few samples a class.",
    )

    shots: int = bounded(5, 1, 1000, "samples of each class that the attacker has")
    draws: int = bounded(10, 1, 1000, "repetitions with other samples")
    kept: int = bounded(100, 1, 100_000, "largest number of kept classes, drawn by the seed")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the accuracy with ``shots`` samples a class, and a curve over 1, 5 and 20."""
        recovery = Recovery(evidence, standardised=True, most_kept=self.kept)
        curve = {
            shots: recovery.run(answered, shots, self.draws)
            for shots in sorted({*CURVE, self.shots})
        }
        found = curve[self.shots]
        return self.finding(
            found.forgotten["unlearned"],
            samples=found.samples,
            interval=found.interval(),
            controls={r: v for r, v in found.forgotten.items() if r != "unlearned"},
            details={"curve": {str(shots): one.details() for shots, one in curve.items()}},
            verdict=found.verdict,
            note=found.note(),
        )
