"""Copies of tensors between the host and a device that computes by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on a device, without waiting for what the device still has to do.

    A copy to the host is waited for: nothing else keeps it from being read before it has arrived.
    """
    wanted = tensor.dtype if dtype is None else dtype
    return tensor.to(device, wanted, non_blocking=device.type != "cpu")
