"""Distances of predictions to a retrained model's, with what two retrained models differ by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from torch import Tensor

from forgetkit.auditing.direction import knows_labels_better
from forgetkit.auditing.evidence import Evidence, Missing, Outputs, Role
from forgetkit.auditing.intervals import compared, mean_interval
from forgetkit.auditing.readings import (
    log_probs,
    masked_note,
    outputs,
    retrained_outputs,
    roles_with,
)
from forgetkit.auditing.training_spread import beyond, wanting
from forgetkit.metric import Finding, Metric, Verdict

Distance = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities of the reference and of a model to one number per sample."""

FEWEST_MODELS = 3
"""Retrained models below which a distance is not judged: two have one, which has no spread."""


def distance_finding(
    metric: Metric,
    evidence: Evidence,
    distance: Distance,
    *,
    splits: Sequence[str] = ("forget", "test_forget", "test_retain"),
    shown: Callable[[float], float] = float,
) -> Finding:
    """Return how far every model at hand is from the first retrained one, on the first split.

    The control ``"retrained"`` is the distance of the second retrained model to the first: two of
    them differ too. The verdict compares with it, and with that of every further one, sample by
    sample. A model that is surely farther than all of these must also be farther from the
    retrained models, on average, than one more of them would be from the others. How the losses
    lie tells ``"residual"`` from ``"over-forgotten"``.

    Args:
        metric: whose finding it is.
        evidence: must have a retrained model.
        distance: of log-probabilities (samples, classes), reference first, to (samples,).
        splits: the first one gives the headline, the others stand in the details.
        shown: what is printed of a mean over samples; must rise with it, so that the interval of
            the mean gives that of what is printed.

    Raises:
        Missing: no retrained model or not the first set is at hand.
    """
    evidence.subject("retrained")
    tables = {
        split: _by_role(evidence, split, distance)
        for split in splits
        if split == splits[0] or evidence.has("unlearned", split)
    }
    own = tables[splits[0]]["unlearned"]
    means = {
        split: {role: shown(float(each.mean())) for role, each in table.items()}
        for split, table in tables.items()
    }
    ends = mean_interval(own, seed=evidence.seed)
    among = _among_all(evidence, distance, splits[0])
    return metric.finding(
        means[splits[0]]["unlearned"],
        samples=len(own),
        interval=None if ends is None else (shown(ends[0]), shown(ends[1])),
        controls={role: v for role, v in means[splits[0]].items() if role != "unlearned"},
        details={
            "sets": means,
            "samples": {name: len(t["unlearned"]) for name, t in tables.items()},
            **(among or {}),
        },
        verdict=_verdict(evidence, distance, splits[0], among),
        note="; ".join(filter(None, [masked_note(evidence), _yardstick(evidence, splits[0])])),
    )


def _by_role(evidence: Evidence, split: str, distance: Distance) -> dict[Role, Tensor]:
    models = retrained_outputs(evidence, split)
    if not models:
        raise Missing("needs the retrained model's outputs on this set")
    reference = log_probs(evidence, models[0])
    found: dict[Role, Outputs] = {
        role: outputs(evidence, role, split)
        for role in roles_with(evidence, split)
        if role != "retrained"
    }
    if "unlearned" not in found:
        found["unlearned"] = outputs(evidence, "unlearned", split)
    if len(models) > 1:
        found["retrained"] = models[1]
    return {role: distance(reference, log_probs(evidence, one)) for role, one in found.items()}


class _Among(TypedDict):
    """How far a model is from every retrained one, and each of these from the others."""

    to_every_retrained: float
    among_retrained: list[float]


def _among_all(evidence: Evidence, distance: Distance, split: str) -> _Among | None:
    """Return mean distances to, and among, all retrained models; nothing for too few of them."""
    models = [log_probs(evidence, one) for one in retrained_outputs(evidence, split)]
    if len(models) < FEWEST_MODELS:
        return None
    own = log_probs(evidence, outputs(evidence, "unlearned", split))
    return {
        "to_every_retrained": _mean_distance(distance, own, models),
        "among_retrained": _apart(distance, models),
    }


def _verdict(evidence: Evidence, distance: Distance, split: str, among: _Among | None) -> Verdict:
    """Return whether the distance exceeds that of all retrained models, and to which side."""
    if among is None or evidence.head_masked:  # a mask's losses were set by hand
        return "not decidable"
    better = knows_labels_better(evidence, split)
    if better is None:
        return "not decidable"  # nothing tells the two directions apart
    own = log_probs(evidence, outputs(evidence, "unlearned", split))
    first, *others = (log_probs(evidence, one) for one in retrained_outputs(evidence, split))
    farther = compared(
        distance(first, own), [distance(first, other) for other in others], seed=evidence.seed
    )
    if farther == "not decidable":
        return "not decidable"
    away, apart = among["to_every_retrained"], among["among_retrained"]
    if farther == "residual" and away > sum(apart) / len(apart) and beyond(away, apart):
        return "residual" if better else "over-forgotten"
    return "as retrain"


def _apart(distance: Distance, models: Sequence[Tensor]) -> list[float]:
    """Return how far each retrained model is from the others, spread like that of one more.

    These means share their distances, which pulls them together: of d_ij = a_i + a_j, the mean
    over the r - 1 others holds a_i only (r - 2) / (r - 1) times, that of one more model all of it.
    For normal a_i one honest model in forty is then farther; distances are skewed, and the rate is
    a few times that.
    """
    found = [
        _mean_distance(distance, model, [other for other in models if other is not model])
        for model in models
    ]
    middle, count = sum(found) / len(found), len(found)
    return [middle + (one - middle) * (count - 1) / (count - 2) for one in found]


def _mean_distance(distance: Distance, model: Tensor, others: Sequence[Tensor]) -> float:
    """Return how far a model is from others, over samples and models."""
    return sum(float(distance(other, model).mean()) for other in others) / len(others)


def _yardstick(evidence: Evidence, split: str) -> str:
    count = len(retrained_outputs(evidence, split))
    second = "the control `retrained` is a second retrained model" if count > 1 else ""
    return "; ".join(filter(None, [second, wanting(count, FEWEST_MODELS)]))
