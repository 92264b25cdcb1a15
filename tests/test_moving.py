"""Copies to the host are complete when they are read; others are not waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forgetkit.engine.place import Place, moved_inputs
from forgetkit.moving import sent
from forgetkit.types import Batch

HOST = torch.device("cpu")


class Watched(Tensor):
    """Notes whether its copies are waited for."""

    not_waited_for: list[bool]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is Tensor.to:
            args[0].not_waited_for.append((kwargs or {}).get("non_blocking", False))
        parent: Any = super()
        return parent.__torch_function__(func, types, args, kwargs or {})


def watched(like: Tensor) -> Watched:
    tensor = like.as_subclass(Watched)
    tensor.not_waited_for = []
    return tensor


@pytest.mark.parametrize(("device", "not_waited_for"), [("cpu", False), ("meta", True)])
def test_only_a_copy_to_the_host_is_waited_for(device: str, *, not_waited_for: bool) -> None:
    tensor = watched(torch.ones(2))
    assert sent(tensor, torch.device(device), torch.float64).dtype == torch.float64
    assert tensor.not_waited_for == [not_waited_for]


def test_batches_arrive_on_the_host_before_they_are_read() -> None:
    inputs, labels = watched(torch.ones(2, 3)), watched(torch.zeros(2, dtype=torch.int64))
    moved_inputs({"pixel_values": inputs}, HOST, torch.bfloat16)
    Place(HOST).moved(Batch(inputs, labels, torch.arange(2), 2))
    assert inputs.not_waited_for == [False, False]
    assert labels.not_waited_for == [False]
