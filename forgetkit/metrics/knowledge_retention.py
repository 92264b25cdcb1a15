"""Linear probe with all samples: knowledge retention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.auditing.probes import few_shot_rows, probe_predictions, sgd_probe_predictions
from forgetkit.auditing.recovery import Bank, Recovery
from forgetkit.fields import bounded, choice
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence


@register_metric
@dataclass(frozen=True, kw_only=True)
class KnowledgeRetention(Metric):
    """Fit a new head to the frozen features of all samples.

        KR = share of test samples of the forgotten classes with argmax_c (W h + b)_c = y

    h are the features, W and b fitted to D_f and D_r. ``form="exact"``: multinomial logistic
    regression, as in ``linear_probe``; ``form="sgd"``: a new Xavier head, SGD 1e-3, 10 epochs,
    batches of 64, on features as they are. With many samples a probe learns the class anew from any
    features, so this shows less than ``linear_probe``.

    Verdict: ``residual`` when the accuracy exceeds the retrained models' mean by more than two
        standard errors, ``as retrain`` otherwise. Features that are bit for bit the original's need
        no such margin: any excess is ``residual``, and without a retrained model whatever is surely
        above chance.

    Source: Lee et al., "ESC: Erasing Space Concept for Knowledge Deletion", CVPR 2025, section 3.

    Differences: the exact form is the default, as it has one solution; at most ``kept`` kept
        classes, the same for every model.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="knowledge_retention",
        title="Knowledge retention (linear probe, all samples)",
        group="audit",
        level="standard",
        range="[0, 1], accuracy on unseen samples of the forgotten classes",
        good="not above that of a retrained model",
        bad="The features still separate the forgotten class better than retraining would.",
        needs="features of all sets; whole classes forgotten; a retrained model for a verdict",
        cost="no F beyond collecting; seconds",
        source="Lee et al. 2025, CVPR",
        link="https://arxiv.org/abs/2504.02199",
        about="How well a new linear head recognises the class when it may learn from everything.",
    )

    form: str = choice("exact", ("exact", "sgd"), "convex solution, or the paper's short training")
    most: int = bounded(200, 2, 100000, "largest number of samples of each class")
    kept: int = bounded(100, 1, 100_000, "largest number of kept classes, drawn by the seed")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the accuracy with all samples, at most ``most`` of each class."""
        recovery = Recovery(evidence, standardised=self.form == "exact", most_kept=self.kept)
        classes, seed = evidence.num_classes, evidence.seed

        def answered(bank: Bank, _: Tensor) -> tuple[Tensor, Tensor | None]:
            rows = few_shot_rows(bank.labels, self.most, seed)
            train, labels = bank.train[rows], bank.labels[rows]
            asked = [bank.forgotten] if bank.kept is None else [bank.forgotten, bank.kept]
            found = (
                probe_predictions(train, labels, asked)
                if self.form == "exact"
                else sgd_probe_predictions(train, labels, asked, classes=classes, seed=seed)
            )
            return found[0], found[1] if bank.kept is not None else None

        found = recovery.run(answered, None, 1)
        return self.finding(
            found.forgotten["unlearned"],
            samples=found.samples,
            interval=found.interval(),
            controls={r: v for r, v in found.forgotten.items() if r != "unlearned"},
            details=found.details(),
            verdict=found.verdict,
            note=found.note(),
        )
