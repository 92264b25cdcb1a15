"""Which forget accuracy a run aims at, and what is read of measurements on the way."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from forgetkit.engine.guard import Reading
from forgetkit.engine.measuring import SetAccuracy
from forgetkit.goal import Goal
from forgetkit.method import Method
from forgetkit.recipe import StopsEarly


def reading_of(measured: Mapping[str, SetAccuracy]) -> Reading:
    """Return what the guard looks at. A sample to relabel is forgotten when its label is known."""
    forget = measured["forget"].accuracy
    if "new_labels" in measured:
        forget = 1.0 - measured["new_labels"].accuracy
    kept = measured.get("validation_retain", measured.get("retain"))
    watched = None if kept is None else kept.accuracy
    return Reading(forget, measured["forget"].loss, watched)


def forget_target(
    method: Method, goal: Goal, labels: Tensor, measured: Mapping[str, SetAccuracy]
) -> float | None:
    """Return the forget accuracy to stop at, or ``None`` for no such rule (rule R6).

    A class should be gone; single samples should be predicted like unseen ones of the same
    classes, when validation data tell how well that is.

    Args:
        method: with its rule.
        goal: of the request.
        labels: of D_f, (N,) or (N, classes) of 0 and 1.
        measured: before the run.
    """
    if not isinstance(method, StopsEarly):
        return None
    if goal.kind == "instances" and method.single_samples_go_on:
        return None
    if goal.kind != "instances" or method.to_zero or "validation_retain" not in measured:
        return 0.0
    unseen = measured["validation_retain"]
    if labels.ndim == 2:
        return unseen.accuracy
    classes = set(labels.tolist())
    seen = [pair for label, pair in unseen.by_class.items() if label in classes]
    count = sum(samples for _, samples in seen)
    if count == 0:
        return 0.0
    # whole numbers of hits: a sum of rounded products may miss equality by a digit
    return sum(round(accuracy * samples) for accuracy, samples in seen) / count


def fallback_target(goal: Goal, start: Reading) -> float:
    """Return the forget accuracy that the guard counts as forgotten when no rule names one."""
    if goal.kind == "instances" and start.retain is not None:
        return start.retain
    return 0.0
