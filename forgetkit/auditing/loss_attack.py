"""Losses of forgotten against unseen samples, as scores read them. Pure but for the evidence."""

from __future__ import annotations

from torch import Tensor

from forgetkit.auditing.evidence import Evidence, Missing, Role
from forgetkit.auditing.members import groups, loss_score
from forgetkit.auditing.readings import (
    losses,
    outputs,
    roles_with,
    single_label,
    tests_given,
    together,
    usable,
)
from forgetkit.membership import FEWEST, forgetting_score


def member_losses(evidence: Evidence, role: Role, fewest: int = FEWEST) -> tuple[Tensor, Tensor]:
    """Return the losses of forget samples and of unseen ones, each at most 400.

    The unseen ones are as many test samples of each class: others would measure class recognition.
    Samples with several labels have no class: then every test sample counts, and requests for
    classes are refused, as few test samples carry the forgotten labels. Behind a masked head,
    whose losses were put there by hand, entropies over the kept classes take their place.

    Raises:
        Missing: a set is not at hand or too small.
        NotApplicable: classes were forgotten, and samples carry several labels.
    """
    if evidence.goal == "classes":
        single_label(outputs(evidence, "unlearned", "forget"))
    if outputs(evidence, "unlearned", "forget").labels.ndim == 2:
        forget = outputs(evidence, role, "forget")
        pair = losses(forget), losses(together(evidence, role, tests_given(evidence)))
        for found, name in zip(pair, ("forget samples", "unseen samples"), strict=True):
            if len(found) < fewest:
                raise Missing(f"needs at least {fewest} {name}, and {len(found)} were given")
        return pair
    members, others = (
        -loss_score(evidence, usable(found, role, "forget"))
        for found in groups(evidence, fewest).of(evidence.subject(role))
    )
    return members, others


def roles_attacked(evidence: Evidence) -> list[Role]:
    """Return the models that have answered both sets of ``member_losses``, the audited one first.

    Raises:
        Missing: the audited one has not.
    """
    several = outputs(evidence, "unlearned", "forget").labels.ndim == 2
    splits = tests_given(evidence) if several else groups(evidence, 1).splits
    return roles_with(evidence, "forget", *splits)


def score_of(evidence: Evidence, role: Role) -> float:
    """Return the forgetting score FS of a model, in [0, 0.5].

    Raises:
        Missing: a set is not at hand or too small.
    """
    return forgetting_score(*member_losses(evidence, role), seed=evidence.seed)


def loss_auc(forget: Tensor, unseen: Tensor) -> float:
    """Return how often a forget sample has a smaller loss than an unseen one; ties count half."""
    from sklearn.metrics import roc_auc_score

    member = [1] * len(forget) + [0] * len(unseen)
    return float(roc_auc_score(member, [-loss for loss in [*forget.tolist(), *unseen.tolist()]]))
