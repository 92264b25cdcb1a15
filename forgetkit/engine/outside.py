"""Whether a run of the head left the weights outside of it alone, told without copies of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from forgetkit.errors import UnlearningFailed

AT_ONCE = 1 << 20
"""Elements summed together: torch makes a sum of 64 bits of a wider copy."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Outside:
    """Remembers the sum of the bits of every tensor: one pass over memory, like a forward's.

    Args:
        tensors: by name, what the run may not change.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {n: t for n, t in tensors.items() if t.layout == torch.strided}
        self._before = _sums(self._tensors)

    def require_kept(self, slug: str) -> None:
        """Refuse the edit of a method, or of a model that changes itself: no patch holds it.

        Args:
            slug: of the method.

        Raises:
            UnlearningFailed: a tensor has other bits than before.
        """
        after = _sums(self._tensors)
        moved = [name for name, found in after.items() if found != self._before[name]]
        if moved:
            raise UnlearningFailed(
                f"{slug}: expected weights outside of the head to keep their values in a run of "
                f"the head alone, found {', '.join(moved[:3])} changed; load the model anew, as "
                "such a run keeps no copy of them, and let neither the method nor the model's "
                "forward write to them"
            )


@torch.no_grad()
def _sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return one whole number for each tensor, whatever its strides."""
    sums = [_sum(tensor.detach()) for tensor in tensors.values()]
    return dict(zip(tensors, torch.stack(sums).tolist(), strict=True)) if sums else {}


def _sum(tensor: Tensor) -> Tensor:
    if tensor.element_size() > 8:  # complex numbers of double precision
        tensor = torch.view_as_real(tensor)
    bits = tensor.view(_INTEGERS[tensor.element_size()])
    if bits.numel() == 0 or bits.ndim == 0:
        return bits.sum(dtype=torch.int64)
    rows = max(1, AT_ONCE * len(bits) // bits.numel())
    return torch.stack([part.sum(dtype=torch.int64) for part in bits.split(rows)]).sum()
