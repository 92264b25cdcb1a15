"""How long an audit will take, before it starts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from forgetkit.auditing.evidence import collect
from forgetkit.metric import Metric
from forgetkit.types import SampleSet

PASSES = {"quick": 0, "standard": 20_000, "full": 200_000}
"""Rough number of sample forwards that one metric of a level makes."""
SECONDS = {"quick": 0.5, "standard": 1.0, "full": 2.0}
"""Rough time of one metric beside its forwards."""
MANY_CLASSES = 50
"""With more, fitting heads to features can take longer than all that the estimate counts."""


def expected_seconds(
    model: nn.Module,
    models: int,
    sets: Mapping[str, SampleSet],
    metrics: Sequence[Metric],
    device: torch.device,
) -> float:
    """Measure one batch, and return how long all of it will take.

    Args:
        model: one of them, on the device.
        models: how many are read.
        sets: that each of them is read on.
        metrics: to run.
        device: where to compute.
    """
    samples = max(sets.values(), key=len)
    some = samples.take(torch.arange(min(samples.batch_size, len(samples))))
    collect(model, {"": some}, device=device)  # the first pass is slower than the rest
    start = time.perf_counter()
    collect(model, {"": some}, device=device)
    each = (time.perf_counter() - start) / len(some)
    total = sum(map(len, sets.values()))
    passes = models * total + sum(PASSES[metric.card.level] for metric in metrics)
    return each * passes + sum(SECONDS[metric.card.level] for metric in metrics)


def in_words(seconds: float, metrics: Sequence[Metric], classes: int) -> str:
    """Say how long, and what that leaves out: how long a fit takes shows only while it is made."""
    spoken = f"{max(round(seconds), 1)} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    if classes <= MANY_CLASSES or not any(metric.card.group == "audit" for metric in metrics):
        return f"about {spoken}"
    return f"about {spoken}, and up to minutes more where new heads are fitted to {classes} classes"
