"""To which side a difference from retrained models lies, where sureness alone does not tell."""

from __future__ import annotations

from forgetkit.auditing.evidence import WRONG_LABELS, Evidence
from forgetkit.auditing.readings import losses, outputs, retrained_outputs
from forgetkit.metric import Verdict


def knows_labels_better(evidence: Evidence, split: str) -> bool | None:
    """Return whether losses are smaller than the first retrained model's; ``None``: not known.

    Nothing is known without labels, and behind a masked head, whose losses were put there by hand.
    """
    models = retrained_outputs(evidence, split)
    if evidence.head_masked or not models or any(one.known_labels is None for one in models):
        return None
    own = losses(outputs(evidence, "unlearned", split)).mean()
    return bool(own < losses(models[0]).mean())


def of_sureness(evidence: Evidence, found: Verdict) -> Verdict:
    """Return the verdict on a measure of how sure a model is, with the side that is true.

    Who still knows samples is surer about them, but for two requests. A model that has learnt
    wrong labels is less sure than one that has not. And with a single kept class a retrained model
    is surest of all, for it answers that one always. There the loss on the forgotten labels
    decides.

    Args:
        evidence: of the measure.
        found: ``residual`` when the model is surer than the retrained ones.
    """
    single = evidence.goal == "classes" and len(evidence.kept_classes) < 2
    if not single and evidence.goal not in WRONG_LABELS:
        return found
    if single and evidence.head_masked:  # over one class, everybody is sure
        return "not decidable"
    if found not in ("residual", "over-forgotten"):
        return found
    better = knows_labels_better(evidence, "forget")
    if better is None:
        return "not decidable"
    return "residual" if better else "over-forgotten"
