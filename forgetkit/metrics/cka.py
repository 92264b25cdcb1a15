"""How alike the features of two models are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forgetkit.auditing.cka import linear_cka
from forgetkit.auditing.evidence import Evidence, Missing, Role
from forgetkit.auditing.readings import outputs, roles_with
from forgetkit.fields import choice
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

SETS = ("forget", "test_forget", "test_retain")


@register_metric
@dataclass(frozen=True, kw_only=True)
class CKA(Metric):
    """Linear CKA of the features before the head; the headline is with the original on D_f.

        CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms

    X, Y = features of the same samples under two models, each column with mean 0. The unbiased form
    has an unbiased estimate of HSIC for each of the three terms. The details hold every pair of
    models on every set; without an original the headline is with the retrained model.

    Verdict: none; two retrained models are less than 1 alike as well, and how much is not known.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
        arXiv:1905.00414; unbiased: Song et al., JMLR 2012, Eq. 5.

    Differences: unbiased when there are fewer than four samples a feature.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="cka",
        title="Linear CKA of features",
        group="representation",
        level="quick",
        range="[0, 1], no unit; the unbiased form may fall slightly below 0",
        good="high on kept samples with the original, on forgotten ones with the retrained model",
        bad="1 with the original: the features of the forgotten samples did not change at all.",
        needs="features of the original or a retrained model, and the forget set",
        cost="products of the collected features",
        source="Kornblith et al. 2019, ICML",
        link="https://arxiv.org/abs/1905.00414",
        about="How alike features are to the original's and to the retrained model's, by set.",
    )

    form: str = choice(
        "auto",
        ("auto", "biased", "unbiased"),
        "auto is unbiased below four samples a feature",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Align features of every pair of models on every set at hand."""
        outputs(evidence, "unlearned", "forget")
        roles = roles_with(evidence, "forget")
        others = roles[1:]
        if not others:
            raise Missing("needs the original or a retrained model, neither was given")
        tables = {
            split: self._pairs({role: evidence.features(role, split) for role in roles})
            for split in SETS
            if all(evidence.has(role, split) for role in roles)
        }
        anchor = "original" if "original" in others else others[0]
        controls: dict[str, float] = {
            role: value
            for role in others
            if role != anchor and (value := _of(tables["forget"], role, anchor)) is not None
        }
        value = _of(tables["forget"], "unlearned", anchor)
        if value is None:
            raise Missing("needs forget samples whose features differ; all are equal, or too few")
        return self.finding(
            value,
            samples=len(outputs(evidence, "unlearned", "forget")),
            controls=controls,
            details={"sets": tables, "with": anchor},
            note=f"similarity with the {anchor} model on the forget samples",
        )

    def _pairs(self, features: Mapping[Role, Tensor]) -> dict[str, float | None]:
        unbiased = None if self.form == "auto" else self.form == "unbiased"
        roles = list(features)
        return {
            f"{one}-{two}": linear_cka(features[one], features[two], unbiased=unbiased)
            for number, one in enumerate(roles)
            for two in roles[number + 1 :]
        }


def _of(table: Mapping[str, float | None], one: str, two: str) -> float | None:
    return table.get(f"{one}-{two}", table.get(f"{two}-{one}"))
