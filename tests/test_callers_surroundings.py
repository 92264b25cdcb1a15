"""Autocast, inference mode and a default device of the caller change no figure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import pytest
import torch
from torch.utils.data import DataLoader

from forgetkit import Statistics, audit, importance_of, train_references
from forgetkit.testing import Toy, toy

Surroundings: TypeAlias = Callable[[], AbstractContextManager[object]]
SURROUNDINGS: dict[str, Surroundings] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default device": lambda: torch.device("meta"),
}


def audited(some: Toy) -> object:
    record = audit(
        some.model, forget=some.loader(), test=DataLoader(some.test, 64), classes=[3],
        metrics=["accuracy", "relearning"], device="cpu", untrained=False,
    )  # fmt: skip
    return [(found.value, found.note, found.details) for found in record.findings]


def important(some: Toy) -> object:
    found = importance_of(some.model, some.loader())
    return {name: value.tolist() for name, value in found.values.items()}


def collected(some: Toy) -> object:
    statistics = Statistics.collect(some.model, some.loader(), positions=2)
    rest = statistics.subtract(some.model, some.forget_loader())
    return {name: value.tolist() for name, value in rest.moments.sums.items()}


def trained(some: Toy) -> object:
    (found,) = train_references(
        some.model, some.loader(), classes=[3], count=1, device="cpu", epochs=1, lr=0.01
    )
    return {name: value.tolist() for name, value in found.state_dict().items()}


@pytest.mark.parametrize("call", [audited, important, collected, trained])
@pytest.mark.slow
def test_what_surrounds_a_call_stays_outside(call: Callable[[Toy], object]) -> None:
    some = toy("cnn")
    expected = call(some)
    for name, entered in SURROUNDINGS.items():
        with entered():
            assert call(some) == expected, name
