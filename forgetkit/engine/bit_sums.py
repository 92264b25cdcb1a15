"""Whether tensors hold the bits that they held before, told without copies of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

AT_ONCE = 1 << 20
"""Elements summed together: torch makes a sum of 64 bits of a wider copy."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def bit_sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return one whole number for each dense tensor: one pass over memory, like a forward's.

    Other values nearly always give another number, and so do the same values with their rows in
    another order. An exchange within a row is not seen.
    """
    dense = {name: t.detach() for name, t in tensors.items() if t.layout == torch.strided}
    device = next((tensor.device for tensor in dense.values()), torch.device("cpu"))
    sums = [_sum(tensor).to(device) for tensor in dense.values()]
    return dict(zip(dense, torch.stack(sums).tolist(), strict=True)) if sums else {}


def _sum(tensor: Tensor) -> Tensor:
    if tensor.element_size() > 8:  # complex numbers of double precision
        tensor = torch.view_as_real(tensor)
    bits = tensor.view(_INTEGERS[tensor.element_size()])
    if bits.numel() == 0 or bits.ndim == 0:
        return bits.sum(dtype=torch.int64)
    rows = max(1, AT_ONCE * len(bits) // bits.numel())
    parts = [part.reshape(len(part), -1).sum(1, dtype=torch.int64) for part in bits.split(rows)]
    return (torch.cat(parts) * torch.arange(1, len(bits) + 1, device=bits.device)).sum()
