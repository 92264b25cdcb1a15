"""Pure functions of logits that several methods share. Shapes: logits (batch, classes)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from forgetkit.moving import sent


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy for class indices (batch,), in nats.

    For multi-label targets (batch, classes) it is the binary cross-entropy, mean over samples and
    labels. An empty batch gives 0 with a gradient of 0, so that every process can take the step.
    """
    if len(labels) == 0:
        return logits.sum() * 0.0
    if labels.ndim == 2:
        return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return functional.cross_entropy(logits.float(), labels)


def bounded_ascent(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the mean cross-entropy over samples whose loss is still below its cap.

    Ascent on cross-entropy is unbounded; a sample whose loss exceeds 2 log K + 5 nats gets weight
    zero (K classes), which keeps the run finite. The mean stays over the whole batch.
    """
    return capped_ascent(logits, labels)[0]


def capped_ascent(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``bounded_ascent`` and how many samples were beyond the cap."""
    if len(labels) == 0:
        return logits.sum() * 0.0, labels.new_zeros(())
    each = per_sample_loss(logits, labels)
    choices = 2 if labels.ndim == 2 else logits.shape[1]
    within = each.detach() <= 2 * math.log(choices) + 5
    return -(each * within).mean(), (~within).sum()


def kl_divergence(target_probs: Tensor, log_probs: Tensor) -> Tensor:
    """Return KL(target || model) in nats, summed over classes, mean over samples."""
    return functional.kl_div(log_probs, target_probs, reduction="batchmean")


def membership(labels: Tensor, num_classes: int) -> Tensor:
    """Return a (batch, classes) boolean mask of each sample's own class."""
    # one_hot counts in int64: eight times the memory
    own: Tensor = labels[:, None] == torch.arange(num_classes, device=labels.device)
    return own


def per_sample_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return one loss per sample in nats, (batch,): cross-entropy, or BCE averaged over labels."""
    if labels.ndim == 2:
        return functional.binary_cross_entropy_with_logits(
            logits.float(), labels.float(), reduction="none"
        ).mean(dim=1)
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def label_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which of several labels are right, (batch, labels) as 0/1.

    A label counts as present when its probability exceeds 0.5, that is when its logit exceeds 0.
    NaN is wrong about every label.
    """
    return (((logits > 0) == (labels > 0.5)) & ~logits.isnan()).float()


def predictions(logits: Tensor) -> Tensor:
    """Return the predicted class of each sample, (batch,); -1, which is no class, for NaN."""
    # argmax takes a NaN for the largest, so that a broken model would predict class 0
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return correctness per sample as 0/1: argmax, or the share of right labels (multi-label)."""
    if labels.ndim == 2:
        return label_hits(logits, labels).mean(dim=1)
    return (predictions(logits) == labels).float()


def unlearning_score(retain_accuracy: float, forget_accuracy: float) -> float:
    """Return US from the accuracies on retained and forgotten test samples, as fractions.

    US = (e^a_r + e^(1 - a_f) - 2) / (2 (e - 1)), in [0, 1], higher is better. Only meaningful
    when a whole class is forgotten.

    Source: Kim, Lee, Woo, "Layer Attack Unlearning", AAAI 2024, Eq. 8.
    """
    gained = math.exp(retain_accuracy) + math.exp(1.0 - forget_accuracy) - 2.0
    return gained / (2.0 * (math.e - 1.0))


def blocked_classes(labels: Tensor, forget_classes: tuple[int, ...], num_classes: int) -> Tensor:
    """Return (batch, classes) booleans: the sample's own class and every forgotten class.

    With several forgotten classes a target among them would pour one into the other.
    """
    blocked = membership(labels, num_classes)
    gone = sent(torch.tensor(forget_classes, dtype=torch.int64), blocked.device)
    return blocked.index_fill_(1, gone, True)
