"""How far to go along a move of the weights, by what the model predicts on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from forgetkit.errors import UnlearningFailed
from forgetkit.per_sample import device_of, wide_type
from forgetkit.second_order import flat
from forgetkit.stopping import unseen_accuracy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from forgetkit.engine.run import Run
    from forgetkit.types import SampleSet

LENGTHS = tuple(2.0 ** (k / 2) for k in range(-24, 1))
"""Of the move, relative to the weights: a four-thousandth to all, by factors of 1.41."""

RETAIN_DROP = 0.1
"""Loss of retain accuracy beyond which a move is not made, however much it forgets."""


class _Trial(NamedTuple):
    """What one scale does; the smaller comes first."""

    distance: float
    scale: float
    forget: float
    lost: float


def searched_scale(run: Run, move: Mapping[str, Tensor], kept: SampleSet) -> float:
    """Return the scale whose model is nearest to what is wanted; weights stay as they are.

    The distance is that of ``validation_gap``:

        |forget accuracy - wanted| + max(0, retain accuracy before - retain accuracy)

    with the accuracy on unseen samples of the same classes before the run wanted of single samples,
    where validation samples tell it, and 0 else. Moves from a four-thousandth of the length of the
    weights to all of it are tried, up to the first that breaks the model; those that cost more than
    10 points of retain accuracy are left out. The smallest of equal ones is taken, and 0 if none is
    nearer than the model as it is. A note says what was found.

    Args:
        run: its weights are where the move starts.
        move: what a scale of one adds, by parameter.
        kept: what retain accuracy is measured on where no validation samples are given.
    """
    single = run.goal.kind == "instances"
    wanted = unseen_accuracy(run) if single and run.validation is not None else 0.0
    if single and run.validation is None:
        run.log(
            "the scale is searched for a forget accuracy of 0 %, which is less than a model that "
            "never saw the samples would have; pass .validate(loader) to stop there"
        )
    whole, step = _length({name: run.parameters[name] for name in move}), _length(move)
    measured = kept if run.validation is None else run.validation
    before, start, forget = run.accuracy(measured), run.snapshot(), run.forget_accuracy()
    trials = [_Trial(_rounded(abs(forget - wanted)), 0.0, forget, 0.0)]
    for scale in (length * whole / step for length in LENGTHS if step > 0.0):
        for name, piece in move.items():
            run.parameters[name].add_(scale * piece)
        found = _found(run, measured)
        run.restore(start)
        if found is None:
            break
        retain, forget = found
        lost = max(before - retain, 0.0)
        if lost <= RETAIN_DROP:
            trials.append(_Trial(_rounded(abs(forget - wanted) + lost), scale, forget, lost))
    best = min(trials)
    run.log(
        f"a scale of {best.scale:.3g} is nearest to a forget accuracy of {100 * wanted:.2f} % "
        f"without loss of retain accuracy: it is {100 * best.forget:.2f} % at a loss of "
        f"{100 * best.lost:.2f} points"
        if best.scale
        else "no scale of the move is nearer to what is wanted than the model as it is: the "
        "weights are not moved"
    )
    return best.scale


def _found(run: Run, measured: SampleSet) -> tuple[float, float] | None:
    """Return retain and forget accuracy of a trial, or nothing where the logits are not finite."""
    try:
        return run.accuracy(measured), run.forget_accuracy()
    except UnlearningFailed:
        if run.processes > 1:  # the others may not have seen it, and would go on alone
            raise
        return None


def _rounded(distance: float) -> float:
    """Return a distance in which sums of the same accuracies are the same."""
    return round(distance, 9)


def _length(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.linalg.vector_norm(flat(tensors).to(wide_type(device_of(tensors)))))
