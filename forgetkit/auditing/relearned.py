"""How long a copy of a model takes to learn the forgotten samples again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from forgetkit.adapting import logits_of, unwrap
from forgetkit.copying import independent_copy
from forgetkit.data.views import Joined
from forgetkit.engine.modes import evaluating, set_update_mode
from forgetkit.engine.place import moved_inputs
from forgetkit.errors import UnlearningFailed
from forgetkit.losses import per_sample_loss
from forgetkit.types import Batch, SampleSet


@dataclass(frozen=True)
class Lessons:
    """What a copy is taught and when it is asked.

    Args:
        forget: D_f.
        retain: D_r.
        batch_size: samples a step, drawn with replacement from both sets together.
        lr: of plain SGD.
        momentum: of it.
        steps: after so many it is given up.
        every: steps between two looks.
        seed: of the draws; equal seeds draw equal samples for every model.
        device: where the copy trains.
    """

    forget: SampleSet
    retain: SampleSet
    batch_size: int
    lr: float
    momentum: float
    steps: int
    every: int
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Progress:
    """How far a copy got.

    Args:
        steps: first look at which it had arrived; ``None`` when it never did.
        curve: (step, number) at each look.
    """

    steps: int | None
    curve: tuple[tuple[int, float], ...]


def relearn(
    model: nn.Module,
    lessons: Lessons,
    look: Callable[[nn.Module], float],
    arrived: Callable[[float], bool],
) -> Progress:
    """Train a copy until a number is reached; the model stays as it was.

    Normalisation with running statistics and dropout stay in eval mode, so that every model sees
    the same lessons.

    Args:
        model: copied, with every parameter trainable.
        lessons: data and recipe.
        look: returns the number of a copy; looked at before the first step too.
        arrived: whether a number is good enough.

    Raises:
        UnlearningFailed: the loss is not finite.
    """
    twin = independent_copy(unwrap(model)).to(lessons.device).requires_grad_(True)
    weights = [p for p in twin.parameters() if p.is_floating_point()]
    optimizer = torch.optim.SGD(weights, lr=lessons.lr, momentum=lessons.momentum)
    both = Joined(lessons.forget, lessons.retain)
    generator = Generator().manual_seed(lessons.seed)
    draws = tuple(
        torch.randint(len(both), (lessons.batch_size,), generator=generator)
        for _ in range(lessons.steps)
    )
    curve = [(0, look(twin))]
    if arrived(curve[-1][1]):
        return Progress(0, tuple(curve))
    set_update_mode(twin, bn="frozen", dropout=False)
    with torch.enable_grad():
        for step, batch in enumerate(both.read(draws, seed=lessons.seed), start=1):
            logits = answer(twin, batch, lessons.device)
            loss = per_sample_loss(logits, batch.labels.to(lessons.device)).mean()
            if not bool(torch.isfinite(loss)):
                raise UnlearningFailed(
                    f"relearning: expected a finite loss, found {loss.item()} at step {step}; "
                    + (
                        "the head gives a class a logit of -inf, which cannot be learnt: audit a "
                        "model whose rows are finite, or read the relearning attack, which resets "
                        "them"
                        if bool(torch.isinf(logits).any())
                        else "choose a smaller lr"
                    )
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % lessons.every == 0 or step == lessons.steps:
                curve.append((step, look(twin)))
                if arrived(curve[-1][1]):
                    return Progress(step, tuple(curve))
    return Progress(None, tuple(curve))


def answer(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Return logits (batch, classes) of a bare model."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    inputs = moved_inputs(batch.inputs, device, dtype)
    return logits_of(model(inputs) if isinstance(inputs, Tensor) else model(**inputs))


def mean_over(
    samples: SampleSet, device: torch.device, number: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[nn.Module], float]:
    """Return a look: the mean over a set of a number per sample of logits and labels."""

    @torch.no_grad()
    def look(model: nn.Module) -> float:
        total = 0.0
        with evaluating(model):
            for batch in samples.batches():
                logits = answer(model, batch, device)
                total += float(number(logits, batch.labels.to(device)).cpu().double().sum())
        return total / len(samples)

    return look
