"""Losses of forgotten against unseen samples, as scores read them. Pure but for the evidence."""

from __future__ import annotations

from torch import Tensor

from forgetkit.audit.evidence import Evidence, Missing, Role
from forgetkit.audit.readings import losses, outputs, tests_given, together
from forgetkit.membership import FEWEST, forgetting_score


def unseen_splits(evidence: Evidence) -> tuple[str, ...]:
    """Return the sets of unseen samples that forget samples are held against.

    These are test samples of the same classes: others would measure class recognition. Samples
    with several labels have no class: then every test sample counts.

    Raises:
        Missing: the forget set or every test set is not at hand.
    """
    several = outputs(evidence, "unlearned", "forget").labels.ndim == 2
    return tests_given(evidence) if several else ("test_forget",)


def member_losses(evidence: Evidence, role: Role) -> tuple[Tensor, Tensor]:
    """Return the losses of the forget samples and of unseen samples, each at most 400.

    Raises:
        Missing: a set is not at hand, or has fewer than ten samples.
    """
    forget = outputs(evidence, role, "forget")
    pair = losses(forget), losses(together(evidence, role, unseen_splits(evidence)))
    for found, name in zip(pair, ("forget samples", "unseen samples"), strict=True):
        if len(found) < FEWEST:
            raise Missing(f"needs at least {FEWEST} {name}, and {len(found)} were given")
    return pair


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
