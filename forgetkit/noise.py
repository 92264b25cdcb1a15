"""Inputs made from noise by the gradient of a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def error_maximising_noise(
    start: Tensor,
    label: int,
    logits_of: Callable[[Tensor], Tensor],
    *,
    energy_weight: float,
    lr: float,
    steps: int,
) -> Tensor:
    """Return inputs on which the loss of one class is large, found by Adam from ``start``.

        minimise -CE(f(N), label) + energy_weight * mean over samples of sum N^2

    Only the inputs move; the model's parameters get no gradient.

    Args:
        start: (samples, ...) draws to begin with; left as they are.
        label: the class whose loss is raised.
        logits_of: maps inputs to logits (samples, classes), differentiably.
        energy_weight: price of large inputs.
        lr: step size of Adam.
        steps: number of steps.

    Source: Tarun, Chundawat, Mandal, Kankanhalli, "Fast Yet Effective Machine Unlearning", IEEE
        TNNLS 2023.
    """
    noise = start.detach().clone().requires_grad_()
    labels = torch.full((len(noise),), label, dtype=torch.int64, device=noise.device)
    optimizer = torch.optim.Adam([noise], lr)
    with torch.enable_grad():
        for _ in range(steps):
            error = functional.cross_entropy(logits_of(noise).float(), labels)
            energy = noise.square().flatten(1).sum(dim=1).mean()
            (noise.grad,) = torch.autograd.grad(energy_weight * energy - error, noise)
            optimizer.step()
    return noise.detach()
