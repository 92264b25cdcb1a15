"""Adversarial steps on inputs or features. Pure functions; the caller chooses device and type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

LogitsFunction = Callable[[Tensor], Tensor]


def affine_sign_attack(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    blocked: Tensor,
    *,
    step: float,
    steps: int,
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """Attack the input of an affine head in closed form: untargeted sign ascent on CE.

    For logits z = W h + b the gradient of CE with respect to h is (1 - p_y) (q W - w_y), where q is
    the softmax of z with the columns in ``blocked`` (at least y) at minus infinity. The positive
    factor does not change the sign, so no autograd is needed and nothing underflows where p_y
    rounds to 1.

    Args:
        features: (batch, dim).
        weight: (classes, dim).
        bias: (classes,).
        labels: (batch,) class indices to move away from.
        blocked: (batch, classes) boolean; true at y and at every class that must not be reached.
        step: length of a step per coordinate; epsilon.
        steps: number of steps; n.
        project: maps moved features back into what is allowed.

    Returns:
        The attacked features, (batch, dim).
    """
    away = weight[labels]
    attacked = features
    for _ in range(steps):
        logits = functional.linear(attacked, weight, bias)
        neighbours = logits.masked_fill(blocked, -torch.inf).softmax(dim=1)
        attacked = project(attacked + step * (neighbours @ weight - away).sign())
    return attacked


def escape(logits: Tensor, labels: Tensor, blocked: Tensor | None = None) -> Tensor:
    """Return logsumexp of the other classes minus the own logit, (batch,).

    CE is log(1 + exp(escape)), so both grow together and their gradients are parallel; this one
    does not vanish where the label's probability rounds to 1, as it does for a confident model.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices to move away from.
        blocked: (batch, classes) boolean; classes that must not be reached, the own one at least;
            ``None`` is the own one alone.
    """
    closed = functional.one_hot(labels, logits.shape[1]).bool() if blocked is None else blocked
    own = logits.gather(1, labels[:, None])[:, 0]
    return logits.masked_fill(closed, -torch.inf).logsumexp(dim=1) - own


def sign_attack(
    inputs: Tensor,
    logits_of: LogitsFunction,
    labels: Tensor,
    *,
    step: float,
    steps: int,
    project: Callable[[Tensor], Tensor],
    blocked: Tensor | None = None,
) -> Tensor:
    """Attack inputs or features through autograd: untargeted sign ascent on cross-entropy.

    The gradient is that of ``escape``, which has the same sign and does not underflow.

    Args:
        inputs: (batch, ...), float.
        logits_of: the attacked function, to logits (batch, classes).
        labels: (batch,) class indices to move away from.
        step: length of a step per coordinate; epsilon.
        steps: number of steps; n.
        project: maps moved inputs back into what is allowed.
        blocked: (batch, classes) boolean; classes that must not be reached, the own one at least;
            ``None`` is the own one alone.

    Returns:
        The attacked inputs, detached.
    """
    attacked = inputs.detach()
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        with torch.enable_grad():
            gain = escape(logits_of(attacked).float(), labels, blocked).sum()
            (gradient,) = torch.autograd.grad(gain, attacked)
        attacked = project(attacked.detach() + step * gradient.sign())
    return attacked.detach()


def projection(
    start: Tensor, radius: float | None, clamp: tuple[float, float] | None
) -> Callable[[Tensor], Tensor]:
    """Return the projection onto an L-infinity ball around ``start`` and onto a range.

    With neither, it is the identity: features of a network have no natural bounds.
    """

    def project(moved: Tensor) -> Tensor:
        if radius is not None:
            moved = torch.minimum(torch.maximum(moved, start - radius), start + radius)
        return moved if clamp is None else moved.clamp(*clamp)

    return project
