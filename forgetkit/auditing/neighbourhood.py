"""What models answer near the forgotten samples: targeted attacks and over-unlearning.

No model is changed: gradients are taken with respect to pixels only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.auditing.probes import class_means, nearest_mean_head
from forgetkit.auditing.relearning import few_rows
from forgetkit.dryrun.outputs import logits_of
from forgetkit.engine.place import moved_inputs
from forgetkit.pixels import PixelRange, gathered, pixel_range, pixels_of, with_pixels
from forgetkit.types import Inputs, SampleSet

Answer = Callable[[Inputs], Tensor]
"""Inputs to logits (batch, classes), differentiable in the pixels."""


def jensen_shannon(left: Tensor, right: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each row in nats, (samples,).

    Args:
        left: (samples, classes) probabilities.
        right: the same.
    """
    middle = (left + right) / 2

    def part(p: Tensor) -> Tensor:
        return (torch.xlogy(p, p) - torch.xlogy(p, middle)).sum(dim=1)

    return (0.5 * (part(left) + part(right))).clamp(min=0.0)


def answer_of(subject: Subject, evidence: Evidence, *, open_head: bool) -> Answer:
    """Return a model as a function of its inputs, which it gets in the type it computes in.

    Attacks move pixels in float32, where steps smaller than a half-precision one still add up.

    Args:
        subject: the model; the caller puts it into eval mode.
        evidence: for the class means.
        open_head: whether to answer with the nearest class mean of the model's own features,
            because the outputs of the forgotten classes are masked.

    Raises:
        Missing: the nearest mean needs features that are not at hand.
    """
    dtype = dtype_of(subject)
    if not open_head:

        def plain(inputs: Inputs) -> Tensor:
            model, inputs = subject.model, moved_inputs(inputs, evidence.device, dtype)
            output = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
            return logits_of(output)

        return plain
    view = subject.view
    parts = [subject.outputs.get(split) for split in ("forget", "retain")]
    if view is None or any(part is None or part.features is None for part in parts):
        raise Missing("needs features of forget and retain samples, as the head's output is masked")
    found = [part for part in parts if part is not None and part.features is not None]
    features = torch.cat([part.features for part in found if part.features is not None])
    labels = torch.cat([part.labels for part in found])
    means, known = class_means(features, labels, evidence.num_classes)
    weight, bias = (t.float().to(evidence.device) for t in nearest_mean_head(means, known))
    shown = view

    def nearest(inputs: Inputs) -> Tensor:
        features = shown.features(moved_inputs(inputs, evidence.device, dtype))
        return nn.functional.linear(features.flatten(1).float(), weight, bias)

    return nearest


def images(
    samples: SampleSet, most: int, evidence: Evidence, dtype: torch.dtype | None
) -> tuple[Inputs, Tensor]:
    """Return inputs and labels of at most ``most`` samples, on the device.

    Raises:
        Missing: the inputs are not images of floating point.
    """
    few = samples.take(few_rows(len(samples), most, evidence.seed))
    batches = list(few.batches())
    inputs = moved_inputs(gathered([b.inputs for b in batches]), evidence.device, dtype)
    try:
        _, pixels = pixels_of(inputs)
    except ValueError as reason:
        raise Missing(f"needs images as one floating-point tensor: {reason}") from reason
    if pixels.ndim < 3:
        raise Missing(f"needs images, found inputs of {pixels.ndim} dimensions")
    return inputs, torch.cat([b.labels for b in batches]).to(evidence.device)


def dtype_of(subject: Subject) -> torch.dtype | None:
    """Return the floating type that a model computes in."""
    return next((p.dtype for p in subject.model.parameters() if p.is_floating_point()), None)


def value_range(inputs: Sequence[Inputs]) -> PixelRange:
    """Return the range of pixels over several inputs."""
    return pixel_range(None, [pixels_of(one)[1] for one in inputs])


def towards(
    inputs: Inputs,
    answer: Answer,
    wanted: Callable[[Tensor], Tensor],
    limits: PixelRange,
    *,
    epsilon: float,
    steps: int,
    step: float | None = None,
    size: int = 128,
) -> Inputs:
    """Return inputs moved by targeted sign descent within an L-infinity ball in unit space.

    Args:
        inputs: not changed.
        answer: the attacked model.
        wanted: logits of the untouched inputs (batch, classes) to a boolean mask of the classes
            to reach; the log of their summed probability is raised.
        limits: range of pixels; radii count in parts of it.
        epsilon: radius.
        steps: number of steps.
        step: length of a step; default 2.5 epsilon / steps.
        size: samples at once.
    """
    _, pixels = pixels_of(inputs)
    length = 2.5 * epsilon / steps if step is None else step
    moved = []
    for rows in torch.arange(len(pixels), device=pixels.device).split(size):
        start = limits.to_unit(pixels[rows])
        with torch.no_grad():
            aim = wanted(answer(with_pixels(inputs, pixels[rows], rows)))
        now = start.clone()
        for _ in range(steps):
            now = now.detach().requires_grad_()
            with torch.enable_grad():
                logits = answer(with_pixels(inputs, limits.from_unit(now), rows)).float()
                # log odds: the log-probability itself is flat where it rounds to 0
                gain = logits.masked_fill(~aim, -1e9).logsumexp(dim=1)
                gain = gain - logits.masked_fill(aim, -1e9).logsumexp(dim=1)
                (slope,) = torch.autograd.grad(gain.sum(), now)
            now = now.detach() + length * slope.sign()
            now = torch.minimum(torch.maximum(now, start - epsilon), start + epsilon).clamp(0, 1)
        moved.append(limits.from_unit(now.detach()).to(pixels.dtype))
    every = torch.arange(len(pixels), device=pixels.device)
    return with_pixels(inputs, torch.cat(moved), every)


@torch.no_grad()
def logits_over(inputs: Inputs, answer: Answer, size: int = 128) -> Tensor:
    """Return logits of all inputs, (samples, classes) float64 on the CPU.

    Raises:
        Missing: a logit is NaN.
    """
    _, pixels = pixels_of(inputs)
    found = torch.cat(
        [
            answer(with_pixels(inputs, pixels[rows], rows)).cpu().double()
            for rows in torch.arange(len(pixels), device=pixels.device).split(size)
        ]
    )
    if bool(found.isnan().any()):
        raise Missing("needs finite predictions, but a model answers NaN to changed images")
    return found
