"""What metrics read from the evidence: per-sample numbers of every model that is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from forgetkit.auditing.divergence import restricted
from forgetkit.auditing.evidence import (
    MEANING,
    ROLES,
    WRONG_LABELS,
    Evidence,
    Missing,
    NotApplicable,
    Outputs,
    Role,
    Subject,
)
from forgetkit.losses import accuracy, per_sample_loss

LARGEST_LOSS = 400.0
"""Losses are cut here: a head whose row was removed has an infinite one."""
HIDDEN = "0 by construction: the head hides the forgotten classes"
MARK = "head masked"
"""What tables put beside such a number."""


def outputs(evidence: Evidence, role: Role, split: str) -> Outputs:
    """Return a model's outputs on a split.

    Raises:
        Missing: the model or the set is not at hand or empty, or a logit is no number.
    """
    return usable(evidence.of(role, split), role, split)


def usable(found: Outputs, who: str, split: str) -> Outputs:
    """Return outputs that numbers can be made from.

    Raises:
        Missing: there are none, or a logit is NaN or plus infinity.
    """
    if len(found) == 0:
        raise Missing(f"needs {MEANING.get(split, split)}, and that set is empty")
    if not are_numbers(found):
        raise Missing(f"needs finite predictions, but the {who} model answers NaN or infinity")
    return found


def broken_models(evidence: Evidence) -> str:
    """Return which models answer NaN or infinity to what, in words; empty when none does."""
    models = [*evidence.subjects.items(), *(("retrained", one) for one in evidence.references)]
    found = [
        f"the {who} model answers NaN or infinity to {MEANING.get(split, split)}"
        for who, subject in models
        for split, seen in subject.outputs.items()
        if not are_numbers(seen)
    ]
    return "; ".join(dict.fromkeys(found))


def are_numbers(found: Outputs) -> bool:
    """Return whether a model answers numbers; minus infinity is one: a masked head answers it."""
    return not bool((found.logits.isnan() | found.logits.isposinf()).any())


def single_label(found: Outputs) -> Outputs:
    """Return outputs whose samples carry one class each, known or not.

    Raises:
        NotApplicable: they carry several yes-or-no labels.
    """
    if found.known_labels is not None and found.known_labels.ndim != 1:
        raise NotApplicable("needs samples with one class each, and these carry several labels")
    return found


def needs_own_labels(evidence: Evidence) -> None:
    """Raise unless the samples carry their own labels.

    Raises:
        NotApplicable: the request is about wrong labels.
    """
    if evidence.goal in WRONG_LABELS:
        raise NotApplicable(
            "asks about samples with labels of their own, and those of this request were wrong; "
            "mia_loss holds wrong labels against unseen samples"
        )


def tests_given(evidence: Evidence) -> tuple[str, ...]:
    """Return which of the two test sets the model under audit has answered.

    Raises:
        Missing: neither.
    """
    splits = ("test_forget", "test_retain")
    found = tuple(split for split in splits if evidence.has("unlearned", split))
    if not found:
        raise Missing("needs test samples, which were not given")
    return found


def together(evidence: Evidence, role: Role, splits: Sequence[str]) -> Outputs:
    """Return a model's outputs on several sets in a row.

    Raises:
        Missing: a set or the model is not at hand.
    """
    return joined([outputs(evidence, role, split) for split in splits])


def joined(found: Sequence[Outputs]) -> Outputs:
    """Return outputs of one model on several sets in a row."""
    features = [part.features for part in found if part.features is not None]
    labels = [part.known_labels for part in found if part.known_labels is not None]
    return Outputs(
        torch.cat([part.logits for part in found]),
        torch.cat(labels) if len(labels) == len(found) else None,
        torch.cat(features) if len(features) == len(found) else None,
        torch.cat([part.index for part in found]),
    )


def roles_with(evidence: Evidence, *splits: str) -> list[Role]:
    """Return the roles that have answered all these sets, ``unlearned`` first."""
    return [role for role in ROLES if all(evidence.has(role, split) for split in splits)]


def hits(found: Outputs) -> Tensor:
    """Return correctness per sample in [0, 1], float64: argmax, or the share of right labels."""
    return accuracy(found.logits, found.labels).double()


def losses(found: Outputs) -> Tensor:
    """Return the loss of each sample in nats, at most ``LARGEST_LOSS``, (samples,) float64."""
    each = found.losses if found.labels.ndim == 1 else per_sample_loss(found.logits, found.labels)
    return each.double().clamp(max=LARGEST_LOSS)


def log_probs(evidence: Evidence, found: Outputs) -> Tensor:
    """Return log-probabilities, (samples, classes) float64.

    Behind a masked head the forgotten classes are left out and the rest sums to 1: what such a
    head says about them was put there by hand.

    Raises:
        Missing: a masked head has no other class.
        NotApplicable: the samples carry several labels.
    """
    single_label(found)
    if not evidence.head_masked:
        return found.log_probs
    if not evidence.kept_classes:
        raise Missing("needs a class that is not forgotten beside the masked ones")
    return restricted(found.log_probs, evidence.kept_classes)


def by_role(
    evidence: Evidence, split: str, number: Callable[[Outputs], float]
) -> dict[Role, float]:
    """Return a number for every model that has outputs on a split.

    Raises:
        Missing: the model under audit has none.
    """
    outputs(evidence, "unlearned", split)
    return {role: number(outputs(evidence, role, split)) for role in roles_with(evidence, split)}


def controls(numbers: Mapping[Role, float]) -> dict[str, float]:
    """Return the numbers of all models but the one under audit."""
    return {role: number for role, number in numbers.items() if role != "unlearned"}


def retrained(evidence: Evidence) -> list[Subject]:
    """Return every retrained model, the first one first; empty when there is none."""
    first = evidence.subjects.get("retrained")
    if first is None:
        return list(evidence.references)
    return [first, *(other for other in evidence.references if other.model is not first.model)]


def retrained_outputs(evidence: Evidence, split: str) -> list[Outputs]:
    """Return the outputs of every retrained model that has some on a split."""
    return [
        usable(subject.outputs[split], "retrained", split)
        for subject in retrained(evidence)
        if split in subject.outputs
    ]


def masked_note(evidence: Evidence) -> str:
    """Return the sentence that belongs to numbers behind a masked head, or nothing."""
    if not evidence.head_masked:
        return ""
    return "the head hides the forgotten classes: probabilities are over the other classes"


def entropy_note(evidence: Evidence) -> str:
    """Return the sentence that belongs to attacks on losses behind a masked head, or nothing."""
    if not evidence.head_masked:
        return ""
    return "the head hides the forgotten classes: entropies over the other ones stand for losses"


def hidden_note(evidence: Evidence) -> str:
    """Return the sentence that belongs to a forget accuracy behind a masked head, or nothing."""
    return f"forget accuracy is {HIDDEN}" if evidence.head_masked else ""


def name_of(evidence: Evidence, label: int) -> str:
    """Return the name of a class, or its index in words."""
    names: Sequence[str] | None = evidence.class_names
    return names[label] if names is not None and label < len(names) else f"class {label}"
