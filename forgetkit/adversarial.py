"""The adversarial stand-in for retained samples, and the pull, of ADV and ADV+IMP.

Pure functions: models come in as functions to logits, random numbers as a function of sample and
purpose. Source: Cha et al., "Learning to Unlearn", AAAI 2024, arXiv:2301.11578, Section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetkit.l2_attacks import random_starts, targeted_l2_attack
from forgetkit.per_sample import LogitsOf, gradients, on_device
from forgetkit.pixels import PixelRange, pixels_of, rows_at_once, with_pixels
from forgetkit.relabelling import drawn_classes
from forgetkit.types import Batch, Inputs

Uniform = Callable[[str, Tensor], Tensor]
"""From a purpose and int64 positions to one number in [0, 1) each."""

MOST_PER_SAMPLE = 1 << 16
"""No more adversarial images than this per sample: their random numbers must not overlap."""

_HALF_ABOVE = 1 << 32  # bytes of adversarial pixels in float32 from which on float16 is kept
_LARGEST_HALF = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class AdversarialSet:
    """Images that the model reads as another class, made from the forget set.

    Args:
        pixels: (images, ...) on the host.
        targets: (images,) int64 the class that each was pushed towards, and is labelled with.
        rows: (images,) int64 the row of the forget set that each was made from.
        reached: share that the model reads as the target.
    """

    pixels: Tensor
    targets: Tensor
    rows: Tensor
    reached: float

    def inputs(self, forget: Inputs) -> Inputs:
        """Return what the model is called with, given the inputs of the whole forget set."""
        return with_pixels(forget, self.pixels, self.rows)


def attack_cost(samples: int, per_sample: int, steps: int) -> int:
    """Return how many samples go forward and backward to make the adversarial set."""
    return samples * per_sample * steps


def adversarial_set(
    inputs: Inputs,
    positions: Tensor,
    blocked: Tensor,
    logits_of: Callable[[Inputs], Tensor],
    uniform: Uniform,
    span: PixelRange,
    *,
    per_sample: int,
    radius: float,
    step: float,
    steps: int,
    device: torch.device,
    budget: int | None = None,
    at_once: int | None = None,
) -> AdversarialSet:
    """Attack every sample ``per_sample`` times, each time towards a class drawn anew.

    All pairs of sample and target are one batch, cut only by memory. Targets and starting points
    are functions of the sample's position, so the result does not depend on the cut.

    Args:
        inputs: the forget set, on the host.
        positions: (samples,) int64 positions in the user's data.
        blocked: (samples, classes) boolean; no target: the own class, and all forgotten ones.
        logits_of: from inputs on ``device`` to logits.
        uniform: source of random numbers.
        span: valid range; radius and step are in its unit space.
        per_sample: N_adv, at least 1.
        radius: rho.
        step: a.
        steps: n.
        device: where the attack computes.
        budget: bytes that a pass may keep for its backward pass; default by device.
        at_once: pairs attacked at once; overrides the budget.
    """
    _, pixels = pixels_of(inputs)
    rows = torch.arange(len(pixels)).repeat_interleave(per_sample)
    pairs = positions.repeat_interleave(per_sample) * MOST_PER_SAMPLE
    pairs += torch.arange(per_sample).repeat(len(pixels))
    draws = uniform("adversarial target", pairs).view(len(pixels), per_sample)
    targets = drawn_classes(draws, blocked).reshape(-1)

    def logits_at(unit: Tensor, some: Tensor) -> Tensor:
        changed = with_pixels(inputs, span.from_unit(unit), some)
        return logits_of(_moved(changed, device))

    if at_once is None:
        example = span.to_unit(pixels[:1].to(device).float())
        room = budget or default_budget(device)
        at_once = rows_at_once(
            lambda unit: logits_at(unit, rows[:1].expand(len(unit))), example, room
        )
    large = 4 * pixels[0].numel() * len(rows) > _HALF_ABOVE
    fits = float(torch.stack([span.low.abs().max(), span.high.abs().max()]).max()) < _LARGEST_HALF
    kept = torch.float16 if large and fits else torch.float32
    attacked = torch.empty((len(rows), *pixels.shape[1:]), dtype=kept)
    hits = 0
    for part in torch.arange(len(rows)).split(at_once):
        unit = span.to_unit(pixels[rows[part]].to(device).float())
        start = random_starts(
            unit, _noise(uniform, pairs[part], unit), radius=radius, low=0.0, high=1.0
        )

        def here(moved: Tensor, some: Tensor = rows[part]) -> Tensor:
            return logits_at(moved, some)

        goal = targets[part].to(device)
        unit = targeted_l2_attack(unit, here, goal, start, radius=radius, step=step, steps=steps)
        with torch.no_grad():
            hits += int((here(unit).argmax(dim=1) == goal).sum())
        attacked[part] = span.from_unit(unit).to("cpu", kept)
    return AdversarialSet(attacked, targets, rows, hits / len(rows))


def default_budget(device: torch.device) -> int:
    """Return the bytes that one attack pass may keep: a fixed number, so that runs repeat."""
    return 1 << 32 if device.type == "cuda" else 1 << 27


def _noise(uniform: Uniform, pairs: Tensor, like: Tensor) -> Tensor:
    """Return uniform numbers for each value of each pair, (pairs, ...)."""
    values = like[0].numel()
    counters = pairs[:, None] * values + torch.arange(values)
    return uniform("adversarial start", counters.reshape(-1)).view_as(like)


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {name: value.to(device) for name, value in inputs.items()}


def joint_weights(forget: int, adversarial: int, balance: str) -> tuple[float, float]:
    """Return the weights of the two batch means.

    Args:
        forget: forget samples of the step.
        adversarial: adversarial samples of the step.
        balance: ``"size"`` weighs by the share of the joint batch, ``"sum"`` gives 1 and 1.
    """
    if balance == "sum":
        return 1.0, 1.0
    return forget / (forget + adversarial), adversarial / (forget + adversarial)


def held(importance: Tensor) -> Tensor:
    """Return how strongly each weight is held, 1 - (O - min) / (max - min) over its tensor.

    What matters for the forget set is free (0), what does not is held (1). A tensor whose values
    are all equal is held.
    """
    low, high = importance.min(), importance.max()
    width = torch.where(high > low, high - low, torch.ones_like(high))
    return 1.0 - (importance - low) / width


def pull(
    now: Mapping[str, Tensor], start: Mapping[str, Tensor], strength: Mapping[str, Tensor]
) -> Tensor:
    """Return half the weighted squared distance to the starting weights."""
    parts = [(strength[name] * (now[name] - start[name]).square()).sum() for name in now]
    return torch.stack(parts).sum() / 2


def batch_importance(
    logits_of: LogitsOf, parameters: Mapping[str, Tensor], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Return the importance that the authors' code computes, batch by batch.

    The absolute gradient of the batch mean of the norm (not squared) of the logits, times the
    batch size; sums over batches, divided by the samples. Signs cancel inside a batch.
    """
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    samples = 0
    for batch in batches:
        inputs = on_device(batch.inputs, parameters)
        found = gradients(logits_of, parameters, inputs, batch.labels, _mean_norm)
        samples += len(batch)
        for name, gradient in found.items():
            total[name] += gradient.abs() * len(batch)
    return {name: value / samples for name, value in total.items()}


def _mean_norm(logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001  needs no labels
    norm: Tensor = torch.linalg.vector_norm(logits.float(), dim=1).mean()
    return norm
