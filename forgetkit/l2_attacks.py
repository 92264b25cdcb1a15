"""Attacks inside an L2 ball. Pure functions; nothing couples the samples of a batch.

Norms are taken per sample over all its values, so that a batch of samples is attacked exactly as
each of them alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from forgetkit.attacks import escape

LogitsFunction = Callable[[Tensor], Tensor]
_SMALLEST = 1e-6
_SCALE = 128.0  # exact in float32; keeps gradients of passes in float16 from rounding to 0


def norms(moves: Tensor) -> Tensor:
    """Return the L2 norm of each sample, (batch, 1, ...): broadcastable to ``moves``."""
    flat: Tensor = torch.linalg.vector_norm(moves.flatten(1), dim=1)
    return flat.view(-1, *[1] * (moves.ndim - 1))


def into_ball(moves: Tensor, radius: float) -> Tensor:
    """Scale each sample's move into the L2 ball; moves inside stay as they are."""
    return moves * (radius / norms(moves).clamp(min=max(radius, 1e-12)))


def random_starts(
    inputs: Tensor, draws: Tensor, *, radius: float, low: float, high: float
) -> Tensor:
    """Return where each sample starts, as a move: towards a uniform point of the range.

    Args:
        inputs: (batch, ...).
        draws: (batch, ...) uniform numbers in [0, 1).
        radius: L2 ball that the move is scaled into.
        low: smallest valid value.
        high: largest valid value.
    """
    point = low + draws.to(inputs.device, inputs.dtype) * (high - low)
    moves = into_ball(point - inputs, radius)
    return (inputs + moves).clamp(low, high) - inputs


def targeted_l2_attack(
    inputs: Tensor,
    logits_of: LogitsFunction,
    targets: Tensor,
    starts: Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Move each input towards its target class inside its L2 ball and the valid range.

        g = -grad CE(f(x + move), target) per sample;  move <- move + step g / max(|g|, 1e-6)
        then clamp x + move to the range, then scale move into the ball

    All steps are made, whether or not the target is already reached. The loss is summed, so that
    a row of the gradient is the gradient of that sample; the weights' gradients are not computed.

    Args:
        inputs: (batch, ...), float32.
        logits_of: the attacked function, to logits (batch, classes), without coupling of samples.
        targets: (batch,) class indices to move towards.
        starts: (batch, ...) first moves.
        radius: rho, in the units of the inputs.
        step: a.
        steps: n.
        low: smallest valid value.
        high: largest valid value.

    Returns:
        The attacked inputs, detached, (batch, ...).

    Source: Cha et al., "Learning to Unlearn", AAAI 2024, arXiv:2301.11578, Sections 3.1
        and 4.1; the order of clamping and scaling is that of their code.
    """

    def loss(logits: Tensor) -> Tensor:
        return -functional.cross_entropy(logits, targets, reduction="sum")

    return _ascended(inputs, logits_of, loss, starts, radius, step, steps, low, high)


def escaping_l2_attack(
    inputs: Tensor,
    logits_of: LogitsFunction,
    labels: Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Move each input away from its label inside its L2 ball: untargeted ascent on CE.

    The gradient is that of ``attacks.escape``, which is parallel to the one of CE and does not
    underflow where the label's probability rounds to 1. Arguments as in ``targeted_l2_attack``;
    the attack starts at the inputs themselves.
    """

    def gain(logits: Tensor) -> Tensor:
        return escape(logits, labels).sum()

    starts = torch.zeros_like(inputs)
    return _ascended(inputs, logits_of, gain, starts, radius, step, steps, low, high)


def nearest_escape(
    inputs: Tensor,
    logits_of: Callable[[Tensor, Tensor], Tensor],
    *,
    radius: float,
    doublings: int,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the adversarial neighbour of each input for the first radius that has one.

    Radii are ``radius``, 2 ``radius``, 4 ``radius``, ...; the step length is a tenth of the radius.
    Inputs are in unit space. A sample that has escaped is not attacked again.

    Args:
        inputs: (batch, ...), in [0, 1].
        logits_of: from inputs (rows, ...) and the rows of the batch that they are, (rows,), to
            logits (rows, classes).
        radius: first radius.
        doublings: how often it may be doubled.
        steps: steps for each radius.

    Returns:
        The attacked inputs, (batch, ...); their predictions, (batch,), which are those of the
        inputs where nothing was found; and the radius found, (batch,), 0 where none was.
    """
    everything = torch.arange(len(inputs), device=inputs.device)
    with torch.no_grad():
        own = logits_of(inputs, everything).argmax(dim=1)
    attacked, predicted = inputs.clone(), own.clone()
    found = inputs.new_zeros(len(inputs))
    rows = everything
    for doubling in range(doublings + 1):
        if len(rows) == 0:
            break
        ball = radius * 2**doubling

        def here(moved: Tensor, rows: Tensor = rows) -> Tensor:
            return logits_of(moved, rows)

        moved = escaping_l2_attack(
            inputs[rows], here, own[rows], radius=ball, step=ball / 10, steps=steps
        )
        with torch.no_grad():
            now = here(moved).argmax(dim=1)
        away = now != own[rows]
        attacked[rows[away]], predicted[rows[away]] = moved[away], now[away]
        found[rows[away]] = ball
        rows = rows[~away]
    return attacked, predicted, found


def _ascended(
    inputs: Tensor,
    logits_of: LogitsFunction,
    gain: Callable[[Tensor], Tensor],
    starts: Tensor,
    radius: float,
    step: float,
    steps: int,
    low: float,
    high: float,
) -> Tensor:
    inputs = inputs.detach()
    move = starts.detach()
    for _ in range(steps):
        move = move.detach().requires_grad_()
        with torch.enable_grad():
            total = _SCALE * gain(logits_of(inputs + move).float())
            (gradient,) = torch.autograd.grad(total, move)
        gradient = gradient / _SCALE
        move = move.detach() + step * gradient / norms(gradient).clamp(min=_SMALLEST)
        move = (inputs + move).clamp(low, high) - inputs
        move = into_ball(move, radius)
    return (inputs + move.detach()).clamp(low, high)
