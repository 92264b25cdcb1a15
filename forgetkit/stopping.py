"""Stop rules that look back: they keep weights of an earlier epoch in ``run.state``.

A method calls ``begin_*`` in ``setup``, the rule in ``checked`` and ``take_back`` in ``finish``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forgetkit.engine.run import Run
    from forgetkit.method import State

HALVINGS = 5
"""Looks between two epochs for the place where the gap closes."""

_KEPT = "kept/"
_BACK = "back"


def begin_gap(run: Run) -> State:
    """Return the state of ``validation_gap`` before training."""
    unseen = unseen_accuracy(run)
    kept, gap = _kept_accuracy(run), unseen - run.forget_accuracy()
    return {
        "kept": _exact(kept), "unseen": _exact(unseen), "gap": _exact(gap),
        "distance": _exact(abs(gap)), **_copies(run),
    }  # fmt: skip


def is_closed(run: Run) -> bool:
    """Return whether the gap was closed at the last look: nothing is left to forget."""
    return bool(run.state["gap"] >= 0)


def validation_gap(run: Run) -> str | None:
    """Stop when D_f is predicted as unseen data were before the run; keep the nearest weights.

    At the first epoch with gap = accuracy on unseen samples before the run - forget accuracy >= 0
    the weights on the line from the epoch before it are kept that have the smallest distance

        |gap| + max(0, validation accuracy before the run - validation accuracy now),

    of both ends and five points between them, halved towards gap = 0. Unseen samples are the
    validation samples of the classes that D_f has.

    Source: Hoang et al., WACV 2024, arXiv:2312.04095, section 4 (stopping).

    Differences: the paper compares with validation samples of all classes, which asks too little of
        the samples of a class that is hard, and with their accuracy at that moment, which falls
        with that on D_f when all samples are of one class: such a class was lost as a whole before
        the gap closed. Before the run it tells what a model would reach that never saw D_f. Without
        the second term an epoch that ruins the model wins, because a ruined model predicts all
        sets equally badly. A single epoch can go far past the point; the authors keep one end.
    """
    before = float(run.state["gap"])
    if before >= 0:
        return (
            "the forget set was predicted no better than validation data before the run, so "
            "nothing was done"
        )
    distance, now = _distance(run)
    if now < 0:
        seen = {"gap": _exact(now), "distance": _exact(distance)}
        run.state = {**run.state, **seen, **_copies(run)}
        return None
    ends = {n.removeprefix(_KEPT): t for n, t in run.state.items() if n.startswith(_KEPT)}
    way, found = _nearest(run, ends, float(run.state["distance"]), distance)
    run.state = {**run.state, **{f"{_KEPT}{name}": tensor for name, tensor in found.items()}}
    run.state = {**run.state, _BACK: torch.ones(())}
    return (
        f"the forget set is predicted no better than validation data were before the run, after "
        f"{run.epoch + 1} epochs (gap {100 * before:.2f}, then {100 * now:.2f} points; the weights "
        f"{100 * way:.0f} % of the way through the last one are kept)"
    )


def _nearest(
    run: Run, earlier: Mapping[str, Tensor], first: float, last: float
) -> tuple[float, dict[str, Tensor]]:
    """Return how far on the way from earlier weights the smallest distance is, and the weights."""
    later = run.snapshot()
    ways = {0.0: first, 1.0: last}
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        way = (low + high) / 2
        run.restore(_between(earlier, later, way))
        ways[way], gap = _distance(run)
        low, high = (way, high) if gap < 0 else (low, way)
    run.restore(later)
    nearest = min(ways, key=lambda way: ways[way])
    return nearest, _between(earlier, later, nearest)


def _between(
    earlier: Mapping[str, Tensor], later: Mapping[str, Tensor], way: float
) -> dict[str, Tensor]:
    return {
        name: torch.lerp(earlier[name], end, way)
        if end.is_floating_point() and 0.0 < way < 1.0
        else (earlier[name] if way == 0.0 else end)
        for name, end in later.items()
    }


def _distance(run: Run) -> tuple[float, float]:
    """Return the distance of the weights of now, and their gap."""
    gap = float(run.state["unseen"]) - run.forget_accuracy()
    return abs(gap) + max(float(run.state["kept"]) - _kept_accuracy(run), 0.0), gap


def _kept_accuracy(run: Run) -> float:
    if run.validation is None:
        raise TypeError("a rule by validation needs validation samples")
    return run.accuracy(run.validation)


def unseen_accuracy(run: Run) -> float:
    """Return the accuracy on validation samples of the classes that D_f has."""
    if run.validation is None:
        raise TypeError("a validation gap needs validation samples")
    like = torch.isin(run.validation.labels, run.forget.labels.unique())
    if not 0 < int(like.sum()) < len(like):
        return run.accuracy(run.validation)
    return run.accuracy(run.validation.take(like.nonzero()[:, 0]))


def begin_patience(run: Run) -> State:
    """Return the state of ``validation_patience`` before training."""
    return {
        "best": _exact(-1.0), "waited": torch.tensor(0), "kept": _exact(_kept_accuracy(run)),
    }  # fmt: skip


def validation_patience(run: Run, epochs: int) -> str | None:
    """Stop when validation accuracy has not risen for some epochs; keep the best epoch.

    The weights from before the run are not among those that are kept: they know what is to be
    forgotten. Why the run ended says how they did.
    """
    if run.validation is None:
        raise TypeError("patience needs validation samples")
    now = run.accuracy(run.validation)
    if now > float(run.state["best"]):
        begun = {"best": _exact(now), "waited": torch.tensor(0), _BACK: torch.ones(())}
        run.state = {**run.state, **begun, **_copies(run)}
        return None
    waited = int(run.state["waited"]) + 1
    run.state = {**run.state, "waited": torch.tensor(waited)}
    if waited < epochs:
        return None
    return (
        f"validation accuracy has not risen for {epochs} epochs; the weights with "
        f"{100 * float(run.state['best']):.2f} % are kept ({100 * float(run.state['kept']):.2f} % "
        "before the run)"
    )


def take_back(run: Run) -> bool:
    """Write back the weights that a rule decided to keep; return whether one did."""
    if _BACK in run.state:
        run.restore(
            {
                name.removeprefix(_KEPT): tensor
                for name, tensor in run.state.items()
                if name.startswith(_KEPT)
            }
        )
    return _BACK in run.state


def _copies(run: Run) -> dict[str, Tensor]:
    return {f"{_KEPT}{name}": tensor for name, tensor in run.snapshot().items()}


def _exact(number: float) -> Tensor:
    """Return a float64 scalar: rounded to float32, an accuracy would rise above itself."""
    return torch.tensor(number, dtype=torch.float64)
