"""Looking whether what a model answers to many batches is finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from forgetkit.engine.place import Place
from forgetkit.errors import UnlearningFailed

TOGETHER = 64
"""Batches whose answers are looked at together: no batch waits for the one before it, and a model
that is broken is not asked about all the others first."""


IMAGES = "check the images of that batch and the model's weights"


class Finite:
    """Refuses what is not finite, and names the batch that it is in.

    Args:
        expected: the beginning of the message, such as ``"measuring: expected finite logits"``.
        place: whose processes all refuse what one of them found, once each has seen its batches:
            they would wait for it else.
        cure: what to do about it.
    """

    def __init__(self, expected: str, place: Place, cure: str = IMAGES) -> None:
        self._expected = expected
        self._cure = cure
        self._place = place
        self._answers: dict[int, Tensor] = {}
        self._broken: int | None = None

    def add(self, number: int, values: Tensor) -> None:
        """Note whether the values of a batch are finite.

        Raises:
            UnlearningFailed: those of this batch, or of one of the last before it, are not.
        """
        self._answers[number] = torch.isfinite(values).all()
        if len(self._answers) == TOGETHER:
            self._look()
            if self._place.world == 1:
                self.check()

    def check(self) -> None:
        """Look at all that was noted; call it after the last batch.

        Raises:
            UnlearningFailed: values of a batch are not finite.
        """
        self._look()
        if not self._place.anywhere(self._broken is not None):
            return
        where = "another process" if self._broken is None else f"batch {self._broken}"
        raise UnlearningFailed(f"{self._expected}, found NaN or infinity in {where}; {self._cure}")

    def _look(self) -> None:
        if self._broken is None:
            self._broken = _first_false(self._answers)
        self._answers = {}


def _first_false(answers: Mapping[int, Tensor]) -> int | None:
    """Return the first number whose answer, a boolean scalar on a device, is false, if one is.

    All of them are asked together: ``bool`` of one after the other waits for the device each time.
    """
    if not answers:
        return None
    every = torch.stack(list(answers.values())).tolist()
    return next((number for number, holds in zip(answers, every, strict=True) if not holds), None)
