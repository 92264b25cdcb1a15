"""What remains of a prediction without some classes: soft targets, log(1 - p_y), entropy, spread.

Pure functions. Shapes: logits (batch, classes); ``blocked`` (batch, classes) is true at the classes
to take away, never at all of a row. All work in float32 and none divides by 1 - p_y, which is
exactly 0 for a sample that the model knows well.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from forgetkit.losses import kl_divergence


def masked_softmax(logits: Tensor, blocked: Tensor, temperature: float = 1.0) -> Tensor:
    """Return softmax(z / T) renormalised over the classes that are not blocked; 0 elsewhere."""
    return (logits.float() / temperature).masked_fill(blocked, -torch.inf).softmax(dim=1)


def adjusted_probabilities(
    logits: Tensor, blocked: Tensor, *, epsilon: float = 0.0, temperature: float = 1.0
) -> Tensor:
    """Return the selective probability adjustment (SPA): a target for a sample to be forgotten.

    With p = softmax(z / T) the blocked classes C get ``epsilon`` in total and all others the rest,
    in the proportions that they had:

        P'_j = (1 - epsilon) p_j / sum_{i not in C} p_i,   P'_c = epsilon p_c / sum_{i in C} p_i

    Args:
        logits: (batch, classes).
        blocked: (batch, classes) boolean; C.
        epsilon: probability left to C.
        temperature: T; above 1 the target is flatter.

    Returns:
        (batch, classes), float32, detached; rows sum to 1.

    Source: Lyu et al., "Fine-Grained and Efficient Self-Unlearning with Layered Iteration", SPA.

    Differences: the paper blocks y alone; for a set C epsilon is shared in proportion too, which
        keeps ``current_divergence`` exact.
    """
    target = (1.0 - epsilon) * masked_softmax(logits.detach(), blocked, temperature)
    if epsilon > 0.0:
        target = target + epsilon * masked_softmax(logits.detach(), ~blocked, temperature)
    return target


def target_divergence(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(target || softmax(z / T)) in nats, mean over samples, without a factor T^2.

    Exact zeros of the target count as 0 log 0 = 0. An empty batch gives 0 with a gradient of 0.
    """
    if len(target) == 0:
        return logits.sum() * 0.0
    student = (logits.float() / temperature).log_softmax(dim=1)
    return kl_divergence(target, student)


def log_rest(logits: Tensor, blocked: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log(1 - p_C), (batch,), as a difference of log-sum-exps.

    Finite where p_C rounds to 1: the smallest value is minus the largest gap between two logits.
    """
    scores = logits.float() / temperature
    return scores.masked_fill(blocked, -torch.inf).logsumexp(dim=1) - scores.logsumexp(dim=1)


def current_divergence(
    logits: Tensor, blocked: Tensor, *, epsilon: float = 0.0, temperature: float = 1.0
) -> Tensor:
    """Return ``target_divergence`` from the student's own adjusted prediction.

    The proportions of the other classes cancel, in the value and in the gradient:

        KL = epsilon log(epsilon / p_C) + (1 - epsilon) log((1 - epsilon) / (1 - p_C))

    Returns:
        Mean over samples, a scalar in nats; for epsilon = 0 it is -log(1 - p_C).
    """
    if len(logits) == 0:
        return logits.sum() * 0.0
    others = math.log1p(-epsilon) - log_rest(logits, blocked, temperature)
    if epsilon == 0.0:
        return others.mean()
    own = math.log(epsilon) - log_rest(logits, ~blocked, temperature)
    return (epsilon * own + (1.0 - epsilon) * others).mean()


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(z) in nats, (batch,)."""
    log_probs = logits.float().log_softmax(dim=1)
    # exp(-inf) * -inf would be NaN; the limit of p log p at 0 is 0
    return -(log_probs.exp() * log_probs.clamp(min=-1e30)).sum(dim=1)


def likeness(features: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of different samples of one class, a scalar in [-1, 1].

    Args:
        features: (batch, ...); everything behind the first dimension is one vector.
        labels: (batch,) class indices.

    Returns:
        0 with a gradient of 0 if no class has two samples.
    """
    vectors = functional.normalize(features.float().flatten(1), dim=1)
    pairs = labels[:, None] == labels[None, :]
    pairs = pairs & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    count = pairs.sum().clamp(min=1)
    return ((vectors @ vectors.T) * pairs).sum() / count


def in_layers(entropies: Tensor, layers: int, chunk_size: int | None = None) -> list[Tensor]:
    """Cut samples into consecutive layers, from the most to the least uncertain.

    Args:
        entropies: (samples,).
        layers: number of layers of equal size; the last may be smaller, and when the size does not
            divide well there are fewer.
        chunk_size: samples a layer instead.

    Returns:
        int64 rows of each layer, on the CPU; ties keep their order.
    """
    order = entropies.cpu().argsort(descending=True, stable=True)
    size = chunk_size or -(-len(order) // layers)
    return list(order.split(size))


def evenly_mixed(labels: Tensor, generator: Generator) -> Tensor:
    """Return an order in which every class is spread evenly, at random within its class.

    Any run of b samples holds close to b n_c / n of class c, so that batches have pairs.

    Args:
        labels: (samples,) class indices.
        generator: on the CPU.

    Returns:
        (samples,) int64 rows.
    """
    drawn = torch.randperm(len(labels), generator=generator)
    mixed = labels.cpu()[drawn]
    place = torch.empty(len(mixed), dtype=torch.float64)
    for label in mixed.unique():
        own = (mixed == label).nonzero()[:, 0]
        start = torch.rand((), generator=generator, dtype=torch.float64)
        place[own] = (torch.arange(len(own), dtype=torch.float64) + start) / len(own)
    return drawn[place.argsort(stable=True)]
