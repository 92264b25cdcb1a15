"""How often a model is right on each class, and which kept class suffers most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetkit.auditing.evidence import Evidence, Missing, Outputs
from forgetkit.auditing.intervals import wilson
from forgetkit.auditing.readings import (
    hits,
    name_of,
    roles_with,
    single_label,
    tests_given,
    together,
)
from forgetkit.metric import Finding, Metric, MetricCard, register_metric


@register_metric
@dataclass(frozen=True, kw_only=True)
class ClassAccuracy(Metric):
    """Accuracy of each class; the headline is that of the worst kept class, which it names.

        min over kept c of acc_c,  acc_c = (right predictions of class c) / (samples of class c)

    On test samples, or on the training sets without those. With the original at hand, the details
    name the kept class that lost most. Where single samples were forgotten, every class is kept.

    Verdict: none; how much a class may lose is for the user to say.

    Source: accuracy as in Kim, Lee, Woo, AAAI 2024, arXiv:2312.16823.

    Differences: the worst class instead of the mean over classes, which hides it.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="class_accuracy",
        title="Accuracy by class",
        group="accuracy",
        level="quick",
        range="[0, 1], share of the worst kept class",
        good="every kept class as under the original",
        bad="One class was ruined to forget another one; the average over classes hides it.",
        needs="test samples, or the forget and retain sets",
        cost="nothing beyond the collected outputs",
        source="Kim, Lee, Woo 2024, AAAI",
        link="https://arxiv.org/abs/2312.16823",
        about="How often the model is right on each class, with the worst kept class named.",
    )

    def measure(self, evidence: Evidence) -> Finding:
        """Count right predictions by true class; for single samples every class is kept."""
        splits = _splits(evidence)
        tables = {
            role: _by_class(together(evidence, role, splits))
            for role in roles_with(evidence, *splits)
        }
        own = tables["unlearned"]
        gone = evidence.forget_classes if evidence.goal == "classes" else ()
        kept = [label for label in own if label not in gone]
        if not kept:
            raise Missing("needs samples of a class that is kept")
        worst = min(kept, key=lambda label: own[label][0] / own[label][1])
        shares = {
            role: {label: right / count for label, (right, count) in table.items()}
            for role, table in tables.items()
        }
        details: dict[str, object] = {
            "sets": list(splits),
            "classes": list(own),
            "names": [name_of(evidence, label) for label in own],
            "samples": [count for _, count in own.values()],
            "accuracy": {role: list(table.values()) for role, table in shares.items()},
            "interval": [list(wilson(right, count)) for right, count in own.values()],
            "worst_class": name_of(evidence, worst),
        }
        if "original" in shares:
            before, after = shares["original"], shares["unlearned"]
            drops = {label: before[label] - after[label] for label in kept}
            most = max(drops, key=drops.__getitem__)
            details |= {"largest_drop": drops[most], "largest_drop_class": name_of(evidence, most)}
        return self.finding(
            shares["unlearned"][worst],
            samples=own[worst][1],
            interval=wilson(*own[worst]),
            controls={role: table[worst] for role, table in shares.items() if role != "unlearned"},
            details=details,
            note=f"the worst kept class is {name_of(evidence, worst)}",
        )


def _splits(evidence: Evidence) -> tuple[str, ...]:
    """Return the test sets, or the training sets when no kept test sample is at hand."""
    tests = [split for split in ("test_retain", "test_forget") if evidence.has("unlearned", split)]
    if "test_retain" in tests or (tests and evidence.goal != "classes"):
        return tests_given(evidence)
    wanted = ("forget", "retain")
    return tuple(split for split in wanted if evidence.has("unlearned", split))


def _by_class(found: Outputs) -> dict[int, tuple[float, int]]:
    """Return how many predictions are right, and of how many, for each class that occurs."""
    right, labels = hits(single_label(found)), found.labels
    return {
        label: (float(right[labels == label].sum()), int((labels == label).sum()))
        for label in labels.unique().tolist()
    }
