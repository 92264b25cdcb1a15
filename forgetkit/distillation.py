"""Distances between a teacher's and a student's predictions. Shapes: logits (batch, classes)."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional


def divergences(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(teacher / T) || softmax(student / T)) of each sample, (batch,), in nats."""
    wanted = (teacher.float() / temperature).log_softmax(dim=1)
    found = (student.float() / temperature).log_softmax(dim=1)
    return functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1)


def distillation(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over samples.

    The square keeps the size of the gradient from falling with the temperature.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    return temperature**2 * divergences(teacher, student, temperature).mean()


def bounded_departure(
    teacher: Tensor, student: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return minus ``distillation`` over samples below the cap, and how many are beyond it.

    Ascent on a divergence is unbounded; a sample that is more than 2 log K + 5 nats away from its
    teacher (K classes), both softened by the temperature and without its square, gets weight zero.
    The mean stays over the whole batch.
    """
    each = divergences(teacher, student, temperature)
    within = each.detach() <= 2 * math.log(student.shape[1]) + 5
    return -(temperature**2) * (each * within).mean(), (~within).sum()
