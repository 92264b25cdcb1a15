"""Whether a run of the head left the weights outside of it alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from forgetkit.engine.bit_sums import bit_sums
from forgetkit.errors import UnlearningFailed


class Outside:
    """Remembers what tensors hold, without copies of them.

    Args:
        tensors: by name, what the run may not change.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._before = bit_sums(tensors)

    def require_kept(self, slug: str) -> None:
        """Refuse the edit of a method, or of a model that changes itself: no patch holds it.

        Args:
            slug: of the method.

        Raises:
            UnlearningFailed: a tensor has other bits than before.
        """
        after = bit_sums(self._tensors)
        moved = [name for name, found in after.items() if found != self._before[name]]
        if moved:
            raise UnlearningFailed(
                f"{slug}: expected weights outside of the head to keep their values in a run of "
                f"the head alone, found {', '.join(moved[:3])} changed; load the model anew, as "
                "such a run keeps no copy of them, and let neither the method nor the model's "
                "forward write to them"
            )
