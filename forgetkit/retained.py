"""What a method that protects retained samples knows of their layer inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forgetkit.errors import BadHyperparameter
from forgetkit.fingerprint import digest, model_prints
from forgetkit.moment_measuring import FLOOR, plain_forward, plan, total
from forgetkit.moments import Moments
from forgetkit.statistics import Statistics

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

TINY = 1e-300
"""Stands for a trace of 0, where everything was taken away."""

_OTHER_WEIGHTS = (
    "pgu: the statistics were measured with other weights than the model has now, so what is "
    "protected is approximate; collect them anew, or take out what a run forgot with "
    "Statistics.without"
)


@dataclass(frozen=True)
class Retained:
    """Second moments of the inputs of D_r.

    Args:
        moments: the sums.
        floor: part of the largest eigenvalue below which one is rounding.
        requests: served before this one, as far as known.
        taken: trace of what was taken out of saved statistics relative to that of the rest, by the
            name of the weight; empty when D_r was measured.
    """

    moments: Moments
    floor: float
    requests: int
    taken: Mapping[str, float] = field(default_factory=dict)

    def thinned(self, names: Collection[str]) -> list[str]:
        """Return those weights whose moments are of some rows of each image only."""
        return [name for name in names if self.moments.layers[name].taken is not None]

    def mismatch(self, negative: Mapping[str, float]) -> float:
        """Return how much of what was taken away was not there, the worst of all weights.

        A sum of squares has no negative part. What is left of one has, when other images were taken
        out of it than went in, or when they are seen through another model now.

        Args:
            negative: negative part of the rest relative to its positive part, by weight.
        """
        widths = {name: layer.width for name, layer in self.moments.layers.items()}
        parts = [
            part / self.taken[name]
            for name, part in negative.items()
            if self.taken.get(name, 0.0) > 0.0 and part > self.floor * widths[name]
        ]
        return max(parts, default=0.0)


def retained(
    run: Run, path: str | None, positions: str, *, dense_patches: bool, max_dim: int
) -> Retained:
    """Measure D_r, or take D_f out of saved statistics of the whole training set.

    With saved statistics D_r is not read: the moments of D_f, seen through the model as it is, are
    subtracted from them. Either is measured in the weights' own type without autocast, as the
    saved ones were.

    Args:
        run: in setup, gradients off and eval mode.
        path: a file of ``Statistics.save``, or ``None`` to measure D_r.
        positions: ``"auto"`` or ``"all"``, when D_r is measured.
        dense_patches: whether patches are cut at every place.
        max_dim: longest row of a layer, when D_r is measured.

    Raises:
        BadHyperparameter: the file's patches were cut in the other way.
    """
    if path is None:
        with run.own_precision():
            return _measured(run, positions, dense_patches=dense_patches, max_dim=max_dim)
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
    with run.own_precision():
        if known.weights not in (None, digest(model_prints(run.model))):
            run.log(_OTHER_WEIGHTS)
        part = known.part(run.model, forget, plain_forward(run.model))
    rest = known.moments.minus(part)
    taken = {name: _trace(part, name) / max(_trace(rest, name), TINY) for name in rest.sums}
    return Retained(rest, FLOOR[known.products], known.requests, taken)


def _measured(run: Run, positions: str, *, dense_patches: bool, max_dim: int) -> Retained:
    forward = plain_forward(run.model)
    layers = plan(
        run.parameters,
        next(iter(run.retain.batches())).inputs,
        forward,
        positions=positions,
        max_dim=max_dim,
        dense_patches=dense_patches,
        images=len(run.retain),
    )
    batches = (batch.inputs for batch in run.retain.batches())
    return Retained(total(run.parameters, layers, batches, forward), FLOOR["double"], 0)


def _trace(moments: Moments, name: str) -> float:
    if name not in moments.sums:
        return 0.0
    return float(moments.sums[name].diagonal(dim1=1, dim2=2).sum())
