"""Accuracies by set and by class, counted over all processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forgetkit.engine.finite import IMAGES, Finite
from forgetkit.engine.place import Place
from forgetkit.losses import accuracy, label_hits, per_sample_loss
from forgetkit.moving import sent
from forgetkit.per_sample import wide_type
from forgetkit.types import Batch, SampleSet

LogitsOf = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class SetAccuracy:
    """How well a model predicts one set.

    Args:
        accuracy: share of right predictions, in [0, 1]; the mean over labels for multi-label.
        loss: mean cross-entropy in nats; binary and averaged over labels for multi-label.
        samples: how many were measured.
        by_class: accuracy and number of samples per true class that occurs (single-label only).
        by_label: accuracy per label at the threshold 0.5 (multi-label only).
    """

    accuracy: float
    loss: float
    samples: int
    by_class: dict[int, tuple[float, int]]
    by_label: dict[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a record of plain numbers; ``by_label`` stands in it for multi-label only."""
        record: dict[str, Any] = {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "samples": self.samples,
            "by_class": {str(label): list(pair) for label, pair in self.by_class.items()},
        }
        if self.by_label:
            record["by_label"] = {str(label): share for label, share in self.by_label.items()}
        return record


@torch.no_grad()
def measure(
    samples: SampleSet,
    logits_of: LogitsOf,
    num_classes: int,
    place: Place,
    *,
    labels: Tensor | None = None,
    cure: str = IMAGES,
) -> SetAccuracy:
    """Measure a set in one pass; the caller has put the model into eval mode.

    Args:
        samples: what to measure.
        logits_of: maps a batch to logits (batch, classes).
        num_classes: width of the logits.
        place: device and processes.
        labels: held against the predictions instead of the set's own, (samples,).
        cure: what to do about a logit that is not finite.

    Raises:
        UnlearningFailed: a logit is not finite; the message names the batch.
    """
    wide = wide_type(place.device)
    right = torch.zeros(num_classes + 2, dtype=wide, device=place.device)
    count = torch.zeros(num_classes + 2, dtype=wide, device=place.device)
    finite = Finite("measuring: expected finite logits", place, cure)
    for number, batch in enumerate(samples.batches(samples.at_once, shard=place.shard)):
        if len(batch) == 0:
            continue
        logits = logits_of(batch).float()
        finite.add(number, logits)
        wanted = sent(batch.labels if labels is None else labels[batch.index], logits.device)
        hits = accuracy(logits, wanted).to(right)
        if wanted.ndim == 1:
            right.index_add_(0, wanted, hits)
            count.index_add_(0, wanted, torch.ones_like(hits))
        else:
            right[:num_classes] += label_hits(logits, wanted).to(right).sum(dim=0)
            count[:num_classes] += len(batch)
        right[-2] += hits.sum()
        count[-2] += len(batch)
        right[-1] += per_sample_loss(logits, wanted).to(right).sum()
    finite.check()
    right, count = place.total(right).cpu(), place.total(count).cpu()
    shares = {
        label: (float(right[label] / count[label]), int(count[label]))
        for label in range(num_classes)
        if count[label] > 0
    }
    multi = samples.labels.ndim == 2
    seen = max(float(count[-2]), 1.0)
    return SetAccuracy(
        accuracy=float(right[-2]) / seen,
        loss=float(right[-1]) / seen,
        samples=int(count[-2]),
        by_class={} if multi else shares,
        by_label={label: share for label, (share, _) in shares.items()} if multi else {},
    )
