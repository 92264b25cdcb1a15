"""A trust region: a weight whose protected directions M may be rescaled together, by a trained Q.

    W_eff = W (I - M M^T) + W M Q M^T

The run's state holds M as ``region/<weight>``, its extra tensors hold Q. Q is folded into W for a
look at what would be left, and taken out again before training goes on.

Source: Lin et al., "TRGP", ICLR 2022, arXiv:2202.02931; Hoang et al., "Learn to Unlearn for Deep
    Neural Networks", WACV 2024, arXiv:2312.04095, section 4 (depoisoning).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetkit.core_space import part
from forgetkit.layers import reaching
from forgetkit.projection import in_region
from forgetkit.types import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from forgetkit.engine.run import Run
    from forgetkit.method import State


def last_weight(run: Run, measured: Iterable[str]) -> str | None:
    """Return the name of the last weight that the logits use, ``None`` where none has moments.

    Args:
        run: with the weights that may change.
        measured: names of those whose inputs were measured, in the order of the model's calls.
    """
    few = next(iter(run.forget.take(torch.arange(min(2, len(run.forget)))).batches()))
    used = reaching(run.model, lambda: run.logits(few))
    return next((name for name in reversed(list(measured)) if name in used), None)


def unscaled(state: State) -> dict[str, Tensor]:
    """Return Q = I for every weight with a trust region."""
    return {
        name: torch.eye(basis.shape[1]).to(basis) for name, basis in part(state, "region").items()
    }


def effective_weights(run: Run) -> dict[str, Tensor]:
    """Return W_eff by name; what a mask holds stays that of W."""
    found = {}
    for name, basis in part(run.state, "region").items():
        weight = run.parameters[name]
        scaled = in_region(weight, basis, run.extra[name])
        found[name] = run.within_mask(name, scaled, weight)
    return found


def logits_through(run: Run, batch: Batch) -> Tensor:
    """Return logits, (batch, classes), with every weight seen through its trust region."""
    effective = effective_weights(run)
    return run.logits_with(effective, batch) if effective else run.logits(batch)


def fold(run: Run) -> State:
    """Write W_eff into the weights; return the state with what ``unfold`` needs."""
    plain: Mapping[str, Tensor] = {
        f"unfolded/{name}": run.parameters[name].detach().clone()
        for name in part(run.state, "region")
    }
    for name, weight in effective_weights(run).items():
        run.parameters[name].copy_(weight)
    return {**run.state, **plain}


def unfold(run: Run) -> None:
    """Write back the weights from before the last ``fold``, if there was one."""
    for name, weight in part(run.state, "unfolded").items():
        run.parameters[name].copy_(weight)
