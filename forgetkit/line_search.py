"""How far to go along a move of the weights, by what the model predicts on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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


def searched_scale(run: Run, move: Mapping[str, Tensor], kept: SampleSet) -> float:
    """Return the scale whose model is nearest to what is wanted; weights stay as they are.

    The distance is that of ``validation_gap``:

        |forget accuracy - wanted| + max(0, retain accuracy before - retain accuracy)

    with the accuracy on unseen samples of the same classes before the run wanted of single samples,
    where validation samples tell it, and 0 else. Moves from a four-thousandth of the length of the
    weights to all of it are tried. The smallest of equal ones is taken, and 0 if none is nearer
    than the model as it is. A note says how near it comes.

    Args:
        run: its weights are where the move starts.
        move: what a scale of one adds, by parameter.
        kept: what retain accuracy is measured on where no validation samples are given.
    """
    known = run.goal.kind == "instances" and run.validation is not None
    wanted = unseen_accuracy(run) if known else 0.0
    whole, step = _length({name: run.parameters[name] for name in move}), _length(move)
    if step == 0.0:
        return 0.0
    measured = kept if run.validation is None else run.validation
    before, start = run.accuracy(measured), run.snapshot()
    found = [(abs(run.forget_accuracy() - wanted), 0.0)]
    for scale in (length * whole / step for length in LENGTHS):
        for name, piece in move.items():
            run.parameters[name].add_(scale * piece)
        lost = max(before - run.accuracy(measured), 0.0)
        found.append((abs(run.forget_accuracy() - wanted) + lost, scale))
        run.restore(start)
    distance, scale = min(found)
    run.log(
        f"a scale of {scale:.3g} is nearest to a forget accuracy of {100 * wanted:.2f} % without "
        f"loss of retain accuracy: {100 * distance:.2f} points from it in all"
        if scale
        else "no scale of the move is nearer to what is wanted than the model as it is: nothing "
        "was changed"
    )
    return scale


def _length(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.linalg.vector_norm(flat(tensors).to(wide_type(device_of(tensors)))))
