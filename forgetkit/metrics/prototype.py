"""Prototypical relearning: the class comes back without any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.evidence import ROLES
from forgetkit.auditing.probes import (
    class_means,
    few_shot_rows,
    harmonic_mean,
    nearest_mean_head,
    prototype_row,
)
from forgetkit.auditing.recovery import Bank, Recovery
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, register_metric
from forgetkit.view import effective_affine

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence

    _Answer = tuple[Tensor, Tensor]  # largest logits and their classes, (samples,) each

CURVE = (1, 5, 20)
BETAS = (0.0, 0.25, 0.5, 1.0)


class _Means:
    """The head that answers with the nearest mean, of the classes that occur."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.classes, own = labels.unique(return_inverse=True)
        self._head = nearest_mean_head(*class_means(features, own, len(self.classes)))

    def best(self, features: Tensor) -> _Answer:
        """Return the largest logit of each sample and its class."""
        logits = torch.nn.functional.linear(features, *self._head)
        first = logits.argmax(dim=1, keepdim=True)
        return logits.gather(1, first)[:, 0], self.classes[first[:, 0]]


class _NearestMean:
    """The attack. What the kept classes' means answer is the same in every draw of one model."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Answer, _Answer]] = {}

    def __call__(self, bank: Bank, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Answer both test sets; all samples to keep are among the rows."""
        few = rows[rows < bank.forget_size]
        means = _Means(bank.train[few], bank.labels[few])
        forgotten, kept = self._of_kept_classes(bank)
        return (
            _nearer(means.best(bank.forgotten), forgotten),
            None if bank.kept is None else _nearer(means.best(bank.kept), kept),
        )

    def _of_kept_classes(self, bank: Bank) -> tuple[_Answer, _Answer]:
        if id(bank) not in self._known:
            means = _Means(bank.train[bank.forget_size :], bank.labels[bank.forget_size :])
            kept = bank.forgotten[:0] if bank.kept is None else bank.kept
            self._known[id(bank)] = means.best(bank.forgotten), means.best(kept)
        return self._known[id(bank)]


def _nearer(one: _Answer, other: _Answer) -> Tensor:
    """Return the class with the larger logit; of equal ones the first, as ``argmax`` does."""
    first = (one[0] > other[0]) | ((one[0] == other[0]) & (one[1] < other[1]))
    return torch.where(first, one[1], other[1])


@register_metric
@dataclass(frozen=True, kw_only=True)
class Prototype(Metric):
    """Put the mean feature of a few forget samples into the head.

        z_c = 2 p_c'h - |p_c|^2,  p_c = mean feature of class c

    the head that answers with the nearest mean, with those of the kept classes from all their
    samples. Beside it the row form: w_c <- beta p_hat + (1 - beta) w_c, p_hat of the mean length of
    the kept rows, best harmonic mean over beta. The row form measures how long rows are as well, so
    the verdict uses the nearest mean only.

    Verdict: ``residual`` when the accuracy exceeds the retrained models' mean by more than two
        standard errors, ``as retrain`` otherwise. Features that are bit for bit the original's need
        no such margin: any excess is ``residual``, and without a retrained model whatever is surely
        above chance.

    Source: Ha, Park, Yoon, "Unlearning's Blind Spots", ICML 2026, arXiv:2506.01318.

    Differences: the nearest-mean head is ours; it needs no head that is affine.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="prototype",
        title="Prototypical relearning attack (nearest class mean)",
        group="audit",
        level="quick",
        range="[0, 1], accuracy on unseen samples of the forgotten classes",
        good="not above that of a retrained model",
        bad="The mean feature of a few images restores the forgotten class, without any training.",
        needs="features of all sets; whole classes forgotten; a retrained model for a verdict",
        cost="no F beyond collecting; a second",
        source="Ha, Park, Yoon 2026, ICML",
        link="https://arxiv.org/abs/2506.01318",
        about="How well the nearest class mean recognises the class from a few samples.",
    )

    shots: int = bounded(5, 1, 1000, "forget samples of each class that the attacker has; m")
    draws: int = bounded(10, 1, 1000, "repetitions with other samples")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the accuracy of the nearest-mean head, a curve over 1, 5, 20 and the row form."""
        recovery = Recovery(evidence, standardised=False)
        nearest = _NearestMean()
        curve = {
            shots: recovery.run(nearest, shots, self.draws, keep_all=True)
            for shots in sorted({*CURVE, self.shots})
        }
        found = curve[self.shots]
        return self.finding(
            found.forgotten["unlearned"],
            samples=found.samples,
            interval=found.interval(),
            controls={r: v for r, v in found.forgotten.items() if r != "unlearned"},
            details={
                "curve": {str(shots): one.details() for shots, one in curve.items()},
                "row": self._row_form(evidence, recovery),
            },
            verdict=found.verdict,
            note=found.note(),
        )

    def _row_form(self, evidence: Evidence, recovery: Recovery) -> dict[str, object]:
        """Return accuracies by role and beta when single rows of the head are replaced."""
        found: dict[str, object] = {}
        for role in ROLES:
            view = evidence.subjects[role].view if role in evidence.subjects else None
            head = None if view is None else effective_affine(view)
            if head is None:
                continue
            bank = recovery.banks[role]
            weight, bias = (tensor.detach().double().cpu() for tensor in head)
            rows = few_shot_rows(bank.labels[: bank.forget_size], self.shots, evidence.seed)
            means, _ = class_means(bank.train[rows], bank.labels[rows], len(weight))
            table: dict[str, object] = {}
            best: float | None = None  # without test samples of kept classes
            for beta in BETAS:
                w, b = weight, bias
                for label in evidence.forget_classes:
                    w, b = prototype_row(w, b, label, means[label], evidence.kept_classes, beta)
                forgotten = _accuracy(bank.forgotten, bank.forgotten_labels, w, b)
                kept = None
                if bank.kept is not None and bank.kept_labels is not None:
                    kept = _accuracy(bank.kept, bank.kept_labels, w, b)
                    best = max(best or 0.0, harmonic_mean(forgotten, kept))
                table[str(beta)] = {"forgotten": forgotten, "kept": kept}
            found[role] = {"beta": table, "best_harmonic_mean": best}
        return found


def _accuracy(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> float:
    predicted = torch.nn.functional.linear(features, weight, bias).argmax(dim=1)
    return float((predicted == labels).double().mean())
