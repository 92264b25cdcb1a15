"""A learnt border around images that recalls a class from a frozen model. No model is changed."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from forgetkit.auditing.neighbourhood import Answer
from forgetkit.pixels import PixelRange, pixels_of, with_pixels
from forgetkit.types import Inputs


def border_mask(height: int, width: int, border: int) -> Tensor:
    """Return which pixels belong to the border, boolean (height, width)."""
    mask = torch.ones(height, width, dtype=torch.bool)
    if 2 * border < min(height, width):
        mask[border : height - border, border : width - border] = False
    return mask


def border_size(channels: int, height: int, width: int, border: int) -> int:
    """Return the number of parameters: C (H W - (H - 2 w)(W - 2 w))."""
    return channels * int(border_mask(height, width, border).sum())


def prompted(inputs: Inputs, prompt: Tensor, limits: PixelRange) -> Inputs:
    """Return inputs with the prompt added in unit space; a prompt of zeros changes nothing.

    Args:
        inputs: images (batch, channels, height, width), alone or among named tensors.
        prompt: (channels, height, width), zero outside the border.
        limits: range of pixels; one unit of the prompt is the whole range.
    """
    _, pixels = pixels_of(inputs)
    width = (limits.high - limits.low).to(pixels.device)
    rows = torch.arange(len(pixels), device=pixels.device)
    return with_pixels(inputs, (pixels + prompt * width).to(pixels.dtype), rows)


def learnt_prompt(
    inputs: Inputs,
    labels: Tensor,
    answer: Answer,
    limits: PixelRange,
    *,
    border: int,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Return the border that lowers CE with the true labels, (channels, height, width).

    Adam; all weights are frozen.

    Args:
        inputs: the attacker's images, forgotten and kept classes.
        labels: (samples,) true classes.
        answer: the frozen model.
        limits: range of pixels.
        border: width in pixels.
        steps: number of steps.
        lr: step size, in parts of the range.
        batch_size: samples a step, drawn without replacement.
        seed: of the draws.
    """
    _, pixels = pixels_of(inputs)
    mask = border_mask(pixels.shape[-2], pixels.shape[-1], border).to(pixels.device)
    prompt = torch.zeros(pixels.shape[1:], device=pixels.device, requires_grad=True)
    optimizer = torch.optim.Adam([prompt], lr=lr)
    generator = Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(labels), generator=generator)[:batch_size].to(pixels.device)
        with torch.enable_grad():
            shown = prompted(with_pixels(inputs, pixels[rows], rows), prompt * mask, limits)
            loss = nn.functional.cross_entropy(answer(shown).float(), labels[rows])
            (prompt.grad,) = torch.autograd.grad(loss, [prompt])
        optimizer.step()
    return (prompt * mask).detach()
