"""PGU's population attack: boosted trees over the outputs of several models."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from forgetkit.auditing.attacks import auc, interval, population_attack
from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.shadows import load_shadows
from forgetkit.fields import artefact, bounded, choice
from forgetkit.metric import Finding, Metric, MetricCard, Verdict, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence

FEWEST = 6


@register_metric
@dataclass(frozen=True, kw_only=True)
class PopulationAttack(Metric):
    """Learn from many models how answers on D_f look when D_f was trained on.

        AUC = P(s > s') + P(s = s') / 2

    s is what boosted trees say about a row of the unlearned model(s), s' about a row of a held-out
    model that never saw D_f. Rows: a model's softmax on a sample of D_f and the one-hot label.
    Models are split 8 : 1 : 1 into training, validation and test, never rows.

    Verdict: ``residual`` when the interval lies above 0.5, ``over-forgotten`` when below; otherwise
        ``as retrain``, but ``not decidable`` with fewer than two unlearned or two held-out models,
        or when the originals have an AUC below 0.55.

    Source: Hoang et al., "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning
        Interference with Gradient Projection", WACV 2024, section 4.1.

    Differences: any number of models from 6 of each kind; the interval is a bootstrap over models.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="population_attack",
        title="Population attack with boosted trees (PGU)",
        group="attack",
        level="full",
        range="[0, 1], area under the ROC curve",
        good="0.5, as between models that never saw the samples",
        bad="The answers on the forgotten samples look like those of models trained on them.",
        needs="logits of 6 models trained with and 6 without the forget set, in a file; xgboost",
        cost="100 trainings in the paper; then seconds",
        source="Hoang et al. 2024, WACV",
        link="https://arxiv.org/abs/2312.04095",
        about="How well trees that know many models tell the unlearned from never-trained ones.",
    )

    shadows: str | None = artefact("file with logits of several models on D_f (save_shadows)")
    booster: str = choice(
        "xgboost", ("xgboost", "histogram"), "the paper's trees, or scikit-learn's (another attack)"
    )
    resamples: int = bounded(1000, 10, 100000, "bootstrap resamples of models")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the AUC against held-out models that never saw D_f."""
        own = evidence.of("unlearned", "forget")
        if self.booster == "xgboost" and importlib.util.find_spec("xgboost") is None:
            raise Missing(
                "needs xgboost: pip install forgetkit[audit]; booster='histogram' uses "
                "scikit-learn's trees instead, which is not the paper's attack"
            )
        found = load_shadows(self.shadows, own.labels)
        if min(len(found.seen), len(found.unseen)) < FEWEST:
            raise Missing(
                f"needs at least {FEWEST} models trained with and {FEWEST} without the forget "
                f"samples, found {len(found.seen)} and {len(found.unseen)}"
            )
        seen, unseen = (
            self._split(rows_of_models(part, own.labels), evidence.seed)
            for part in (found.seen, found.unseen)
        )
        trees = population_attack(
            seen[0].flatten(0, 1), unseen[0].flatten(0, 1), seen[1].flatten(0, 1),
            unseen[1].flatten(0, 1), booster=self.booster, seed=evidence.seed,
        )  # fmt: skip
        target = rows_of_models(torch.cat([own.logits[None], found.unlearned]), own.labels)
        scores = {
            name: torch.stack([_asked(trees, rows) for rows in part])
            for name, part in (
                ("unlearned", target), ("original", seen[2]), ("unseen", unseen[2]),
                ("validation", unseen[1]),
            )
        }  # fmt: skip
        negative = scores["unseen"]
        generator = torch.Generator().manual_seed(evidence.seed)
        drawn = torch.tensor(
            [
                auc(_resampled(scores["unlearned"], generator), _resampled(negative, generator))
                for _ in range(self.resamples)
            ]
        )
        ends = interval(drawn)
        verdict: Verdict = "as retrain"
        note = ""
        if len(negative) < 2:
            note = "one held-out model: its own spread is not known, so there is no interval"
        works = auc(scores["original"].flatten(), negative.flatten())
        value = auc(scores["unlearned"].flatten(), negative.flatten())
        if len(negative) < 2 or len(target) < 2:
            verdict = "not decidable"
            note = note or "one unlearned model: its own spread is not in the interval"
        elif ends[0] > 0.5:
            verdict = "residual"
        elif ends[1] < 0.5:
            verdict = "over-forgotten"
        elif works < 0.55:
            verdict, note = "not decidable", "the attack finds nothing in the originals either"
        return self.finding(
            value,
            samples=len(own),
            interval=None if len(negative) < 2 else ends,
            controls={
                "original": works,
                "retrained": auc(scores["validation"].flatten(), negative.flatten()),
            },
            details={
                "models_seen": len(found.seen),
                "models_unseen": len(found.unseen),
                "models_unlearned": len(target),
                "held_out": len(negative),
                "booster": self.booster,
            },
            verdict=verdict,
            note=note,
        )

    def _split(self, rows: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return training, validation and test models, 8 : 1 : 1, at least one of the latter."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        held = max(1, len(rows) // 10)
        return rows[order[2 * held :]], rows[order[:held]], rows[order[held : 2 * held]]


def rows_of_models(logits: Tensor, labels: Tensor) -> Tensor:
    """Return softmax and one-hot label beside each other, (models, samples, 2 classes) float64."""
    probs = logits.double().softmax(dim=2)
    labels = torch.nn.functional.one_hot(labels, logits.shape[2]).double()
    return torch.cat([probs, labels.expand_as(probs)], dim=2)


def _asked(trees: object, rows: Tensor) -> Tensor:
    found = getattr(trees, "predict_proba")(rows.numpy())[:, 1]  # noqa: B009  two libraries
    return torch.as_tensor(found, dtype=torch.float64)


def _resampled(scores: Tensor, generator: torch.Generator) -> Tensor:
    rows = torch.randint(len(scores), (len(scores),), generator=generator)
    return scores[rows].flatten()
