"""Membership inference from confidence and entropy, learnt on kept and test samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.auditing.attacks import (
    FEWEST,
    balanced_rows,
    called_members,
    entropy,
    interval,
    modified_entropy,
)
from forgetkit.auditing.evidence import Missing
from forgetkit.auditing.excess import references, roles_with, unlike_retrain
from forgetkit.auditing.intervals import resampled_means, wilson
from forgetkit.auditing.members import log_probs_of
from forgetkit.auditing.readings import joined, needs_own_labels, single_label, tests_given
from forgetkit.auditing.relearning import few_rows
from forgetkit.fields import bounded, choice
from forgetkit.metric import Finding, Metric, MetricCard, register_metric

if TYPE_CHECKING:
    from torch import Tensor

    from forgetkit.auditing.evidence import Evidence, Outputs, Subject

FEATURES = ("entropy", "confidence", "correctness", "modified_entropy")


@register_metric
@dataclass(frozen=True, kw_only=True)
class MiaConfidence(Metric):
    """Learn on kept training and on test samples what members look like; ask it about D_f.

        share = (1 / |D_f|) sum_{x in D_f} [the classifier calls f(x) a member]

    f is the entropy, the probability of the label, whether the prediction is right, or the modified
    entropy -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c). ``1 - share`` is what SalUn reports
    as "MIA efficacy".

    Verdict: ``residual`` when the share is surely above every retrained model's,
        ``over-forgotten`` when surely below all; otherwise ``as retrain``, but ``not decidable``
        without a retrained model, with fewer than ten samples, or unless the attack calls the
        original's forget samples members more often than unseen ones.

    Source: bad teaching (Chundawat et al., AAAI 2023; ``classifier="svc"`` on entropy), SSD (Foster
        et al., AAAI 2024; logistic regression on entropy), SalUn (Fan et al., ICLR 2024).

    Differences: both groups are cut at random to equal size; SalUn's modified entropy is computed
        by row.
    """

    card: ClassVar[MetricCard] = MetricCard(
        slug="mia_confidence",
        title="Membership inference from confidence and entropy",
        group="attack",
        level="quick",
        range="[0, 1], share of the forget samples called member",
        good="as the retrained model's; 0 may be as conspicuous as 1",
        bad="The model answers the forgotten samples in the way in which it answers training data.",
        needs="rightly labelled forget set, kept and test samples; a retrained model for a verdict",
        cost="no F beyond collecting; seconds",
        source="Chundawat et al. 2023, AAAI; Foster et al. 2024, AAAI; Fan et al. 2024, ICLR",
        link="https://arxiv.org/abs/2310.12508",
        about="How many forgotten samples an attack takes for training data.",
    )

    feature: str = choice("entropy", FEATURES, "what the attack looks at")
    classifier: str = choice("logistic", ("logistic", "svc"), "balanced regression, or RBF kernel")
    most: int = bounded(2000, 20, 100000, "largest number of samples of each group to learn from")
    resamples: int = bounded(1000, 10, 100000, "bootstrap resamples behind the comparison")

    def measure(self, evidence: Evidence) -> Finding:
        """Return the share of D_f called member."""
        needs_own_labels(evidence)
        single_label(evidence.of("unlearned", "forget"))
        # Where no class was forgotten as a whole, test samples of every class are unseen ones.
        tests = ("test_retain",) if evidence.goal == "classes" else tests_given(evidence)
        roles = roles_with(evidence, "forget", "retain", *tests)
        sizes = [
            sum(len(evidence.of("unlearned", n)) for n in part) for part in (("retain",), tests)
        ]
        if evidence.head_masked and self.feature != "entropy":
            raise Missing(
                "needs the probability of the forgotten class, but its output is masked; use "
                "feature='entropy', which looks at the kept classes"
            )
        balanced = balanced_rows(sizes[0], sizes[1], evidence.seed)
        chosen = few_rows(len(balanced[0]), self.most, evidence.seed + 1)
        rows = [part[chosen] for part in balanced]

        def called(subject: Subject, split: str = "forget") -> Tensor:
            pools = subject.outputs["retain"], joined([subject.outputs[name] for name in tests])
            trained, tested = (
                self._feature(evidence, pool.take(part))
                for pool, part in zip(pools, rows, strict=True)
            )
            asked = self._feature(evidence, subject.outputs[split])
            return called_members(trained, tested, asked, classifier=self.classifier)

        def drawn(found: Tensor) -> Tensor:
            # the same draws of the same samples for every model
            return resampled_means(found, seed=evidence.seed, resamples=self.resamples)

        members = {role: called(evidence.subjects[role]) for role in roles}
        unseen = {
            role: float(called(evidence.subjects[role], "test_forget").double().mean())
            for role in roles
            if evidence.has(role, "test_forget")
        }
        share = {role: float(found.double().mean()) for role, found in members.items()}
        works = None
        if "original" in members and "original" in unseen:
            works = interval(drawn(members["original"]))[0] > unseen["original"]
        retrained = [members["retrained"]] if "retrained" in members else []
        retrained += [
            called(one)
            for one in references(evidence)[1:]
            if all(split in one.outputs for split in ("forget", "retain", *tests))
        ]
        own = members["unlearned"]
        verdict, difference = unlike_retrain(drawn(own), [drawn(one) for one in retrained], works)
        note = "" if retrained else "no retrained model to compare with"
        if len(own) < FEWEST:
            verdict, note = "not decidable", f"{len(own)} samples are too few to decide"
        if works is False:
            note = "the attack finds nothing in the original either, so it shows little"
        return self.finding(
            share["unlearned"],
            samples=len(own),
            interval=wilson(int(own.sum()), len(own)),
            controls={role: value for role, value in share.items() if role != "unlearned"},
            details={
                "share_of_members": share,
                "efficacy": {role: 1.0 - value for role, value in share.items()},
                "share_of_unseen_of_same_classes": unseen,
                "share_of_every_retrained": [float(one.double().mean()) for one in retrained],
                "difference_to_retrained": None if difference is None else list(difference),
                "learnt_from": len(rows[0]),
            },
            verdict=verdict,
            note=note,
        )

    def _feature(self, evidence: Evidence, outputs: Outputs) -> Tensor:
        """Return the attack's feature, (samples, 1)."""
        log_probs = log_probs_of(evidence, outputs)
        if self.feature == "entropy":
            found = entropy(log_probs)
        elif self.feature == "confidence":
            found = (-outputs.losses).exp()
        elif self.feature == "correctness":
            found = outputs.right.double()
        else:
            found = modified_entropy(log_probs, outputs.labels)
        return found[:, None]
