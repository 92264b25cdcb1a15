"""Whether a run left alone what it may not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from forgetkit.engine.bit_sums import bit_sums
from forgetkit.errors import UnlearningFailed
from forgetkit.fingerprint import same_bits


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
        moved = self._moved()
        if moved:
            raise UnlearningFailed(_changed(slug, moved))

    @contextmanager
    def told_of(self, slug: str) -> Iterator[None]:
        """Say so when the block breaks after a tensor was written to: none is put back.

        Raises:
            UnlearningFailed: the block raised, and a tensor has other bits than before.
        """
        try:
            yield
        except Exception as error:
            moved = self._moved()
            if moved:
                raise UnlearningFailed(
                    f"{_changed(slug, moved)}. The run broke, too: {type(error).__name__}: {error}"
                ) from error
            raise

    def _moved(self) -> list[str]:
        after = bit_sums(self._tensors)
        return [name for name, found in after.items() if found != self._before[name]]


def _changed(slug: str, moved: list[str]) -> str:
    return (
        f"{slug}: expected weights outside of the head to keep their values in a run of the head "
        f"alone, found {', '.join(moved[:3])} changed; load the model anew, as such a run keeps no "
        "copy of them, and let neither the method nor the model's forward write to them"
    )


def require_frozen_kept(
    frozen: Mapping[str, nn.Parameter], before: Mapping[str, Tensor], slug: str
) -> None:
    """Refuse the edit of a method that wrote to what the caller froze: no patch holds that.

    Args:
        frozen: live, by name.
        before: values from before the run, by name.
        slug: of the method.

    Raises:
        UnlearningFailed: a frozen parameter is not what it was.
    """
    moved = [
        name
        for name, parameter in frozen.items()
        if not same_bits(parameter.to(before[name].dtype), before[name])
    ]
    if moved:
        raise UnlearningFailed(
            f"{slug}: expected frozen parameters to keep their values, found "
            f"{', '.join(moved[:3])} changed; the model holds the weights it came in with: "
            "call requires_grad_(True) on what may change, or use another method"
        )
