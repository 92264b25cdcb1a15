"""Copies of tensors between the host and a device that computes by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on a device, without waiting for what the device still has to do.

    A copy to the host is waited for: nothing else keeps it from being read before it has arrived.
    """
    wanted = tensor.dtype if dtype is None else dtype
    return tensor.to(device, wanted, non_blocking=device.type != "cpu")


def first_false(answers: Mapping[int, Tensor]) -> int | None:
    """Return the first number whose answer, a boolean scalar on a device, is false, if one is.

    All of them are asked together: ``bool`` of one after the other waits for the device each time.
    """
    if not answers:
        return None
    every = torch.stack(list(answers.values())).tolist()
    return next((number for number, holds in zip(answers, every, strict=True) if not holds), None)
