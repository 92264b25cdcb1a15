"""One moment of a run, between two epochs: taken, and put back into a run that goes on from it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forgetkit.engine.guard import BestState
from forgetkit.engine.resuming import Saved
from forgetkit.engine.run import Run
from forgetkit.engine.session import accelerator_states, set_accelerator_states
from forgetkit.errors import DataError

_RANDOM = "random/"


def taken(
    epochs: int, run: Run, best: BestState | None, loop: Saved, seconds: Mapping[str, float]
) -> Saved:
    """Return all that the rest of a run depends on.

    Args:
        epochs: how many are done.
        run: with weights, state and draws.
        best: what the guard keeps.
        loop: what the loop keeps.
        seconds: spent so far, by phase.
    """
    weights = {n: t for n, t in run.snapshot().items() if t.layout == torch.strided}
    groups: dict[str, Mapping[str, Tensor]] = {
        "weights": weights, "state": run.state, "extra": run.extra, "loop": loop.tensors,
        "best": {} if best is None else best.tensors(),
    }  # fmt: skip
    tensors = {f"{word}/{n}": t for word, group in groups.items() for n, t in group.items()}
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  user transforms draw from it
    record = {
        "step": run.step,
        "target": run.target,
        "notes": run.notes,
        "counts": {name: float(number) for name, number in run.counts.items()},
        "tallies": {name: float(number) for name, number in run.tallies.items()},
        "twin_was_made": run.twin_was_made,
        "best": None if best is None else best.record(),
        "loop": loop.record,
        "seconds": dict(seconds),
        "on_device": [name for name, tensor in tensors.items() if tensor.device.type != "cpu"],
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {
            "key": numpy_state["state"]["key"].tolist(), "pos": int(numpy_state["state"]["pos"]),
        }},
    }  # fmt: skip
    tensors |= {f"{_RANDOM}cpu": torch.get_rng_state(), f"{_RANDOM}run": run.generator.get_state()}
    for number, state in enumerate(accelerator_states()):
        tensors[f"{_RANDOM}accelerator/{number}"] = state
    return Saved(epochs, tensors, record)


def put_back(saved: Saved, run: Run, best: BestState | None) -> Saved:
    """Write a moment into a run, and return what is the loop's.

    Args:
        saved: the moment.
        run: of the same request, at its start.
        best: what the guard keeps.

    Raises:
        DataError: something is missing in it.
    """
    try:
        return _written_into(saved, run, best)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"resumable: expected the progress of this run, found a record without all of it "
            f"({type(error).__name__}: {error}); delete its files, and the run begins anew"
        ) from error


def _written_into(saved: Saved, run: Run, best: BestState | None) -> Saved:
    record = saved.record
    away = set(record["on_device"])
    tensors = {n: t.to(run.device) if n in away else t for n, t in saved.tensors.items()}
    run.restore({**run.snapshot(), **_under(tensors, "weights")})
    run.state = _under(tensors, "state")
    run.extra = {n: t.requires_grad_() for n, t in _under(tensors, "extra").items()}
    run.step, run.target = record["step"], record["target"]
    run.notes[:] = record["notes"]
    run.counts, run.tallies = dict(record["counts"]), dict(record["tallies"])
    run.twin_was_made = record["twin_was_made"]
    if best is not None:
        best.load(_under(tensors, "best"), record["best"])
    version, words, rest = record["python"]
    random.setstate((version, tuple(words), rest))
    legacy = record["numpy"]
    key = np.array(legacy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**legacy, "state": {**legacy["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(tensors[f"{_RANDOM}cpu"])
    run.generator.set_state(tensors[f"{_RANDOM}run"])
    set_accelerator_states(list(_under(tensors, "random/accelerator").values()))
    return Saved(saved.epochs, _under(tensors, "loop"), record["loop"])


def _under(tensors: Mapping[str, Tensor], word: str) -> dict[str, Tensor]:
    start = f"{word}/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
