"""What a method that protects retained samples knows of their layer inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgetkit.errors import BadHyperparameter
from forgetkit.moments import Moments
from forgetkit.statistics import FLOOR, Statistics, plan, total

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@dataclass(frozen=True)
class Retained:
    """Second moments of the inputs of D_r.

    Args:
        moments: the sums.
        floor: part of the largest eigenvalue below which one is rounding.
        requests: served before this one, as far as known.
    """

    moments: Moments
    floor: float
    requests: int


def retained(run: Run, path: str | None, positions: str, *, dense_patches: bool) -> Retained:
    """Measure D_r, or take D_f out of saved statistics of the whole training set.

    With saved statistics D_r is not read: the moments of D_f, seen through the model as it is, are
    subtracted from them.

    Args:
        run: in setup, gradients off and eval mode.
        path: a file of ``Statistics.save``, or ``None`` to measure D_r.
        positions: ``"auto"`` or ``"all"``, when D_r is measured.
        dense_patches: whether patches are cut at every place.

    Raises:
        BadHyperparameter: the file's patches were cut in the other way.
    """
    forward = run.logits_from_inputs
    if path is None:
        example = next(iter(run.retain.batches())).inputs
        layers = plan(
            run.parameters, example, forward, positions=positions, dense_patches=dense_patches
        )
        batches = (batch.inputs for batch in run.retain.batches())
        return Retained(total(run.parameters, layers, batches, forward), FLOOR["double"], 0)
    known = Statistics.load(path)
    known.check(run.model)
    made = known.dense_patches
    if made != dense_patches:
        raise BadHyperparameter(
            f"dense_patches: expected {made}, with which the statistics {path} were collected, "
            f"found {dense_patches}; pass dense_patches={made} or collect them with "
            f"dense_patches={dense_patches}"
        )
    forget = (batch.inputs for batch in run.forget.batches())
    rest = known.moments.minus(known.part(run.model, forget, forward))
    return Retained(rest, FLOOR[known.products], known.requests)
