"""Stop rules that look back: they keep weights of an earlier epoch in ``run.state``.

A method calls ``begin_*`` in ``setup``, the rule in ``checked`` and ``take_back`` in ``finish``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from forgetkit.engine.run import Run
    from forgetkit.method import State

_KEPT = "kept/"
_BACK = "back"


def begin_gap(run: Run) -> State:
    """Return the state of ``validation_gap`` before training."""
    kept, gap = _kept_and_gap(run)
    return {"kept": _exact(kept), "gap": _exact(gap), "distance": _exact(abs(gap)), **_copies(run)}


def is_closed(run: Run) -> bool:
    """Return whether the gap was closed at the last look: nothing is left to forget."""
    return bool(run.state["gap"] >= 0)


def validation_gap(run: Run) -> str | None:
    """Stop when D_f is predicted no better than unseen data; keep the epoch nearer to that.

    At the first epoch with gap = accuracy on unseen samples - forget accuracy >= 0 it or the epoch
    before it is kept, whichever has the smaller distance

        |gap| + max(0, validation accuracy before the run - validation accuracy now).

    Unseen samples are the validation samples of the classes that D_f has.

    Source: Hoang et al., WACV 2024, arXiv:2312.04095, section 4 (stopping).

    Differences: the second term. Without it an epoch that ruins the model wins, because a ruined
        model predicts both sets equally badly. The paper compares with validation samples of all
        classes, which asks too little of the samples of a class that is hard.
    """
    before = float(run.state["gap"])
    if before >= 0:
        return (
            "the forget set was predicted no better than validation data before the run, so "
            "nothing was done"
        )
    kept, now = _kept_and_gap(run)
    distance = abs(now) + max(float(run.state["kept"]) - kept, 0.0)
    if now < 0:
        seen = {"gap": _exact(now), "distance": _exact(distance)}
        run.state = {**run.state, **seen, **_copies(run)}
        return None
    earlier = float(run.state["distance"]) < distance
    if earlier:
        run.state = {**run.state, _BACK: torch.ones(())}
    return (
        f"the forget set is predicted no better than validation data after {run.epoch + 1} epochs "
        f"(gap {100 * before:.2f}, then {100 * now:.2f} points; the "
        f"{'earlier' if earlier else 'later'} weights are kept)"
    )


def _kept_and_gap(run: Run) -> tuple[float, float]:
    """Return the accuracy on validation data, and that on unseen samples less that on D_f."""
    if run.validation is None:
        raise TypeError("a validation gap needs validation samples")
    kept = unseen = run.accuracy(run.validation)
    like = torch.isin(run.validation.labels, run.forget.labels.unique())
    if 0 < int(like.sum()) < len(like):
        unseen = run.accuracy(run.validation.take(like.nonzero()[:, 0]))
    return kept, unseen - run.forget_accuracy()


def begin_patience() -> State:
    """Return the state of ``validation_patience`` before training."""
    return {"best": _exact(-1.0), "waited": torch.tensor(0)}


def validation_patience(run: Run, epochs: int) -> str | None:
    """Stop when validation accuracy has not risen for some epochs; keep the best epoch."""
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
        f"{100 * float(run.state['best']):.2f} % are kept"
    )


def take_back(run: Run) -> None:
    """Write back the weights that a rule decided to keep, if they are not those of now."""
    if _BACK in run.state:
        run.restore(
            {
                name.removeprefix(_KEPT): tensor
                for name, tensor in run.state.items()
                if name.startswith(_KEPT)
            }
        )


def _copies(run: Run) -> dict[str, Tensor]:
    return {f"{_KEPT}{name}": tensor for name, tensor in run.snapshot().items()}


def _exact(number: float) -> Tensor:
    """Return a float64 scalar: rounded to float32, an accuracy would rise above itself."""
    return torch.tensor(number, dtype=torch.float64)
