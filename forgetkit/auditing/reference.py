"""Reference models that never saw the forget samples, for per-sample attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetkit.auditing.evidence import Evidence, Missing, Role, Subject
from forgetkit.auditing.excess import references, roles_with
from forgetkit.auditing.likelihood import logit_confidence
from forgetkit.auditing.members import log_probs_of
from forgetkit.auditing.readings import needs_own_labels


@dataclass(frozen=True)
class Reference:
    """Models under attack and models to compare with.

    Args:
        evidence: the outputs.
        targets: models under attack, by role. The retrained one is only there when other
            references are left to attack it with.
        out: reference models, none of them a target.
        labels: by split, the class whose probability is looked at: the true one, or for a masked
            head the kept class that the references answer most.
    """

    evidence: Evidence
    targets: Mapping[Role, Subject]
    out: Sequence[Subject]
    labels: Mapping[str, Tensor]

    def probability(self, subject: Subject, split: str) -> Tensor:
        """Return the probability of the label, (samples,) float64."""
        found = log_probs_of(self.evidence, subject.outputs[split])
        return found.gather(1, self.labels[split][:, None])[:, 0].exp()

    def confidence(self, subject: Subject, split: str) -> Tensor:
        """Return phi = log(p / (1 - p)) of the label, (samples,) float64."""
        return logit_confidence(
            log_probs_of(self.evidence, subject.outputs[split]), self.labels[split]
        )


def references_for(evidence: Evidence) -> Reference:
    """Return targets and reference models.

    Raises:
        Missing: there is no retrained model, or a model lacks outputs.
        NotApplicable: the request is about wrong labels.
    """
    needs_own_labels(evidence)
    roles = roles_with(evidence, "forget", "test_forget")
    models = [
        one
        for one in references(evidence)
        if all(split in one.outputs for split in ("forget", "test_forget"))
    ]
    if not models:
        raise Missing("needs at least one model that was trained without the forget samples")
    targets: dict[Role, Subject] = {
        role: evidence.subjects[role] for role in roles if role in ("unlearned", "original")
    }
    out = models
    if len(models) > 1:
        targets["retrained"], out = models[0], models[1:]
    labels = {}
    for split in ("forget", "test_forget"):
        labels[split] = evidence.of("unlearned", split).labels
        if evidence.head_masked:
            means = torch.stack([log_probs_of(evidence, one.outputs[split]).exp() for one in out])
            labels[split] = means.mean(dim=0).argmax(dim=1)
    return Reference(evidence, targets, out, labels)
