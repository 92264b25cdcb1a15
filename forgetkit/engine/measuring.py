"""Accuracies by set and by class, counted over all processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forgetkit.engine.place import Place
from forgetkit.errors import UnlearningFailed
from forgetkit.losses import accuracy
from forgetkit.types import Batch, SampleSet

LogitsOf = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class SetAccuracy:
    """How well a model predicts one set.

    Args:
        accuracy: share of right predictions, in [0, 1]; the mean over labels for multi-label.
        loss: mean cross-entropy in nats.
        samples: how many were measured.
        by_class: accuracy and number of samples per true class that occurs (single-label only).
    """

    accuracy: float
    loss: float
    samples: int
    by_class: dict[int, tuple[float, int]]

    def to_json(self) -> dict[str, Any]:
        """Return a record of plain numbers."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "samples": self.samples,
            "by_class": {str(label): list(pair) for label, pair in self.by_class.items()},
        }


@torch.no_grad()
def measure(
    samples: SampleSet,
    logits_of: LogitsOf,
    num_classes: int,
    place: Place,
    *,
    batch_size: int | None = None,
) -> SetAccuracy:
    """Measure a set in one pass; the caller has put the model into eval mode.

    Raises:
        UnlearningFailed: a logit is not finite; the message names the batch.
    """
    right = torch.zeros(num_classes + 2, dtype=torch.float64, device=place.device)
    count = torch.zeros(num_classes + 2, dtype=torch.float64, device=place.device)
    for number, batch in enumerate(samples.batches(batch_size, shard=place.shard)):
        if len(batch) == 0:
            continue
        logits = logits_of(batch).float()
        if not torch.isfinite(logits).all():
            raise UnlearningFailed(
                f"measuring: expected finite logits, found NaN or infinity in batch {number}; "
                "check the images of that batch and the model's weights"
            )
        labels = batch.labels.to(logits.device)
        hits = accuracy(logits, labels).double()
        if labels.ndim == 1:
            right.index_add_(0, labels, hits)
            count.index_add_(0, labels, torch.ones_like(hits))
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        else:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, labels.float(), reduction="sum"
            ) / max(labels.shape[1], 1)
        right[-2] += hits.sum()
        count[-2] += len(batch)
        right[-1] += loss.double()
    right, count = place.total(right), place.total(count)
    by_class = {
        label: (float(right[label] / count[label]), int(count[label]))
        for label in range(num_classes)
        if count[label] > 0
    }
    seen = max(float(count[-2]), 1.0)
    return SetAccuracy(float(right[-2]) / seen, float(right[-1]) / seen, int(count[-2]), by_class)
