"""What a model shows beyond models that never saw the data: the rule behind the verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forgetkit.auditing.attacks import interval
from forgetkit.auditing.evidence import ROLES, Evidence, Missing, NotApplicable, Role, Subject
from forgetkit.auditing.intervals import FEWEST
from forgetkit.auditing.readings import single_label
from forgetkit.metric import Verdict


def needs_classes(evidence: Evidence) -> None:
    """Raise unless whole classes were forgotten.

    Raises:
        NotApplicable: the request was about single samples, whose class is still taught by others,
            or the samples carry several labels.
        Missing: no class is kept.
    """
    if evidence.has("unlearned", "forget"):
        single_label(evidence.of("unlearned", "forget"))
    if evidence.goal != "classes":
        raise NotApplicable(
            "looks for forgotten classes, but this request is about single samples, whose classes "
            "the model still knows from other samples"
        )
    if not evidence.kept_classes:
        raise Missing("needs at least one class that is kept")


def references(evidence: Evidence) -> list[Subject]:
    """Return every model that was trained without the forget samples, the first one first."""
    if evidence.references:
        return list(evidence.references)
    return [evidence.subjects["retrained"]] if "retrained" in evidence.subjects else []


def roles_with(evidence: Evidence, *splits: str) -> list[Role]:
    """Return the roles whose outputs on all these splits are at hand, ``unlearned`` first.

    Raises:
        Missing: the unlearned model's are not.
    """
    for split in splits:
        evidence.of("unlearned", split)
    return [role for role in ROLES if all(evidence.has(role, split) for split in splits)]


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation, 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    return float(torch.tensor(values, dtype=torch.float64).std())


def standard_error(differences: Tensor) -> float:
    """Return the standard error of the mean of differences (draws, samples).

    Both the draws of the attacker's samples and the test samples are random, so both spreads
    count. A single draw or sample adds nothing.
    """
    total = 0.0
    for means in (differences.double().mean(dim=1), differences.double().mean(dim=0)):
        if len(means) > 1:
            total += float(means.var()) / len(means)
    return math.sqrt(total)


def surely_above(differences: Sequence[Tensor]) -> Verdict:
    """Return ``residual`` when a model is more than two standard errors above every retrained one.

    Args:
        differences: (samples,) model minus retrained model, one a retrained model.

    Returns:
        Otherwise ``as retrain``, or ``not decidable`` without a retrained model or below ten
        samples.
    """
    if not differences or min(map(len, differences)) < FEWEST:
        return "not decidable"
    above = all(float(one.mean()) > 2 * standard_error(one[None]) for one in differences)
    return "residual" if above else "as retrain"


def excess(
    right: Mapping[str, Tensor], others: Sequence[Tensor]
) -> tuple[float | None, float | None, Verdict]:
    """Return what is recovered beyond retraining, its standard error, and the verdict.

    ``residual`` when the excess over the mean of the retrained models is more than two standard
    errors. Retrained models differ among themselves: with several, their spread is added. Fewer
    than ten samples decide nothing.

    Args:
        right: (draws, samples) 0/1 whether a test sample was recovered, under ``"unlearned"``.
        others: the same for each retrained model, same draws and samples.
    """
    if not others:
        return None, None, "not decidable"
    own = right["unlearned"].double()
    found = [own - other.double() for other in others]
    difference = torch.stack(found).mean(dim=0)
    error = math.hypot(
        standard_error(difference), spread([float(o.double().mean()) for o in others])
    )
    value = float(difference.mean())
    if own.shape[1] < FEWEST:
        return value, error, "not decidable"
    return value, error, "residual" if value > 2 * error else "as retrain"


def unlike_retrain(
    unlearned: Tensor, retrained: Sequence[Tensor], works: bool | None
) -> tuple[Verdict, tuple[float, float] | None]:
    """Return a verdict on an attack from bootstrap resamples, and an interval of the difference.

    Args:
        unlearned: (resamples,) of the attack's number, higher for members.
        retrained: the same resamples under each retrained model.
        works: whether the attack tells the original from these; ``None`` when not known.

    ``residual`` when it is surely above that of every retrained model, ``over-forgotten`` when
    surely below all: then the samples are conspicuous the other way. An attack that finds nothing
    more in the original, or was never tried on it, proves nothing: ``not decidable``. The interval
    is that of the difference to the first retrained model, ``None`` without one.
    """
    if not retrained:
        return "not decidable", None
    ends = [interval(unlearned - other) for other in retrained]
    if all(low > 0 for low, _ in ends):
        return "residual", ends[0]
    if all(high < 0 for _, high in ends):
        return "over-forgotten", ends[0]
    return ("as retrain" if works else "not decidable"), ends[0]
