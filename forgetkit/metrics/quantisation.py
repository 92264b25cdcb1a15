"""Recovery by quantisation, casting and pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.auditing.evidence import ROLES, Missing, collect
from forgetkit.auditing.excess import needs_classes, references, surely_above
from forgetkit.auditing.quantising import SETTINGS, compressed
from forgetkit.auditing.relearning import few_rows
from forgetkit.fields import bounded
from forgetkit.metric import Finding, Metric, MetricCard, Verdict, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Subject


@register_metric
@dataclass(frozen=True, kw_only=True)
class Quantisation(Metric):
    """Round, cast or prune a copy of the weights and see whether the forgotten class is back.

        w_hat = s clip(round(w / s), -2^(b-1), 2^(b-1) - 1),  s = max |w| / (2^(b-1) - 1) by channel

    with b = 8, 4 and 3 bits; casts to bfloat16 and float16; pruning of the smallest 30 %. Headline:
    the largest rise of the accuracy on unseen samples of the forgotten classes, over settings under
    which at least ``usable`` of the accuracy on kept classes is left (a broken model answers
    anything).

    Verdict: ``residual`` when under one such setting the rise exceeds that of every retrained model
        under the same setting by more than two standard errors, ``as retrain`` otherwise;
        ``not decidable`` for a masked head, in which nothing can show, and instead of
        ``as retrain`` for a model whose accuracy as it is exceeds that of every retrained model
        by as much: what was never gone cannot come back.

    Source: quantisation restores forgotten knowledge: Zhang et al., ICLR 2025, arXiv:2410.16454
        (language models).

    Differences: image classifiers, by accuracy; casts and pruning beside quantisation.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="quantisation",
        title="Quantisation, casting and pruning recovery",
        group="audit",
        level="quick",
        range="[-1, 1], rise of the accuracy on the forgotten classes",
        good="0, or not above that of a retrained model",
        bad="Storing the model in fewer bits undoes the unlearning.",
        needs="test images; whole classes forgotten; a retrained model for a verdict",
        cost="six times an F over at most 1 000 samples",
        source="Zhang et al. 2025, ICLR",
        link="https://arxiv.org/abs/2410.16454",
        about="How much of the class comes back when weights are rounded, cast or pruned.",
        reads="disturbed",
    )

    usable: float = bounded(
        0.8, 0.0, 1.0, "share of the accuracy on kept classes that must be left"
    )
    most_tests: int = bounded(500, 1, 1000000, "largest number of test samples of each kind")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the largest rise over all settings, and both accuracies under each."""
        needs_classes(evidence)
        sets = {
            split: evidence.samples(split).take(
                few_rows(len(evidence.samples(split)), self.most_tests, evidence.seed)
            )
            for split in ("test_forget", "test_retain")
        }
        models: dict[str, Subject] = {
            role: evidence.subjects[role] for role in ROLES if role in evidence.subjects
        }
        own_retrained = evidence.subjects.get("retrained")
        for at, subject in enumerate(references(evidence)):
            if subject is not own_retrained:
                models[f"reference {at}"] = subject
        right: dict[str, dict[str, dict[str, Tensor]]] = {
            name: {
                setting: {
                    split: found.right.double()
                    for split, found in collect(
                        subject.model if setting == "as is" else compressed(subject.model, setting),
                        sets, device=evidence.device,
                    ).items()
                }
                for setting in ("as is", *SETTINGS)
            }
            for name, subject in models.items()
        }  # fmt: skip
        others = [n for n in models if n == "retrained" or n.startswith("reference")]
        rises = {name: self._rises(found) for name, found in right.items()}
        if not rises["unlearned"]:
            raise Missing("needs a model that survives compression; every setting breaks this one")
        worst = max(rises["unlearned"], key=lambda s: float(rises["unlearned"][s].mean()))
        found = {
            surely_above([own - rises[o][setting] for o in others if setting in rises[o]])
            for setting, own in rises["unlearned"].items()
        }
        verdict: Verdict = "residual" if "residual" in found else "as retrain"
        if "not decidable" in found and len(found) == 1:
            verdict = "not decidable"
        note = "" if others else "no retrained model to compare with"
        as_is = {name: found["as is"]["test_forget"] for name, found in right.items()}
        known = surely_above([as_is["unlearned"] - as_is[other] for other in others])
        if verdict == "as retrain" and known == "residual":
            verdict = "not decidable"
            note = "the model as it is still knows the forgotten classes, so little can come back"
        if evidence.head_masked:
            verdict = "not decidable"
            note = "the outputs of the forgotten classes are masked, so nothing can show in them"
        return self.finding(
            float(rises["unlearned"][worst].mean()),
            samples=len(sets["test_forget"]),
            controls={
                name: max(float(rise.mean()) for rise in rises[name].values())
                for name in models
                if name != "unlearned" and name in ROLES and rises[name]
            },
            details={
                "setting": worst,
                "accuracy": {
                    name: {
                        setting: {split: float(hits.mean()) for split, hits in both.items()}
                        for setting, both in found.items()
                    }
                    for name, found in right.items()
                },
            },
            verdict=verdict,
            note=note,
        )

    def _rises(self, found: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the rise for each sample, under the settings that leave a usable model."""
        before = found["as is"]
        least = self.usable * float(before["test_retain"].mean())
        return {
            setting: both["test_forget"] - before["test_forget"]
            for setting, both in found.items()
            if setting != "as is" and float(both["test_retain"].mean()) >= least
        }
