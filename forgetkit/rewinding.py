"""Going back to the epoch whose forget error is nearest to that of unseen samples.

A method calls ``remember`` in ``start_epoch`` and ``rewind`` in ``finish``. All states are kept in
memory, one more than there are epochs.

Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023 (rewinding).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetkit.errors import DataError
from forgetkit.types import SampleSet

if TYPE_CHECKING:
    from forgetkit.engine.run import Run
    from forgetkit.method import State


def remember(run: Run) -> State:
    """Return the run's state with the weights as they stand, and their forget error."""
    error = torch.tensor(1.0 - run.accuracy(run.forget), dtype=torch.float64)
    kept = {f"{run.epoch}/{name}": value.cpu() for name, value in run.snapshot().items()}
    return {**run.state, **kept, f"error/{run.epoch}": error}


def rewind(run: Run, unseen: SampleSet) -> str:
    """Go back to the state nearest to how unseen samples are read in the end; say to which."""
    reference = 1.0 - run.accuracy(unseen)
    last = sum(name.startswith("error/") for name in run.state)
    errors = [float(run.state[f"error/{epoch}"]) for epoch in range(last)]
    errors.append(1.0 - run.accuracy(run.forget))
    chosen = nearest_state(errors, reference)
    if chosen < last:
        prefix = f"{chosen}/"
        run.restore(
            {n.removeprefix(prefix): v for n, v in run.state.items() if n.startswith(prefix)}
        )
    return (
        f"went back to epoch {chosen} of {last}, forget error {100 * errors[chosen]:.2f} %, where "
        f"unseen samples have {100 * reference:.2f} %"
    )


def nearest_state(errors: Sequence[float], reference: float) -> int:
    """Return the position of the error nearest to the reference; the later one of equals."""
    # twelve decimals: 0.3 - 0.2 and 0.2 - 0.1 are equal distances, but not in binary
    return min(range(len(errors)), key=lambda at: (round(abs(errors[at] - reference), 12), -at))


def unseen_like_forgotten(run: Run, slug: str, instead: str) -> SampleSet:
    """Return the validation samples of the forget samples' classes.

    Args:
        run: with the validation samples.
        slug: of the method that asks.
        instead: a method that does without.

    Raises:
        DataError: there are none.
    """
    samples = run.validation
    rows = torch.empty(0, dtype=torch.int64)
    if samples is not None:
        labels: Tensor = run.forget.labels
        rows = torch.isin(samples.labels, labels.unique()).nonzero().flatten()
    if samples is None or len(rows) == 0:
        raise DataError(
            f"{slug}: expected validation samples of the forgotten samples' classes, found "
            f"{'no validation data' if samples is None else 'none of these classes'}; pass "
            f"`.validate(loader)` with unseen samples of them, or use {instead}"
        )
    return samples.take(rows)
