"""The pictures of a report, in its order. Each is left out, with the reason, when it lacks data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from forgetkit.auditing.evidence import Evidence
from forgetkit.report.drawing import Picture
from forgetkit.report.pictures import (
    cka,
    class_accuracy,
    confusion,
    embedding,
    entropy,
    few_shot,
    history,
    radar,
    relearning,
    relevance,
    roc,
    rollout,
)
from forgetkit.report.record import Record

Draw: TypeAlias = Callable[[Record, Evidence | None], Picture]

PICTURES: dict[str, Draw] = {
    "Accuracy by class": class_accuracy.picture,
    "What the forgotten samples are taken for": confusion.inheritance,
    "How unsure the models are": entropy.picture,
    "Membership attack by threshold": roc.picture,
    "How few samples bring the class back": few_shot.picture,
    "How fast the class comes back": relearning.picture,
    "Features before and after": embedding.picture,
    "What speaks for the forgotten class": relevance.picture,
    "Where attention goes": rollout.picture,
    "Likeness of the layers by depth": cka.depth,
    "Layers before against layers after": cka.maps,
    "Confusion of the test samples": confusion.matrices,
    "All axes at once": radar.picture,
    "The run by epoch": history.picture,
}
"""By title."""
