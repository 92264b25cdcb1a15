"""From a patch and a target to the bits to write, with every check before the first write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from forgetkit.checkpoint import WeightSet
from forgetkit.errors import PatchMismatch
from forgetkit.fingerprint import TensorBits, sha256_of
from forgetkit.patch.header import Entry
from forgetkit.patch.leftovers import Leftovers, of_optimizer
from forgetkit.patch.placing import Placement, place, shares_names

_SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class Turn:
    """One direction of one patch.

    Args:
        entries: every tensor the patch was made from, by name.
        deltas: before XOR after of the changed ones, (bytes,) uint8.
        forward: apply, else revert.
    """

    entries: Mapping[str, Entry]
    deltas: Mapping[str, Tensor]
    forward: bool

    def changes(self, found: Mapping[str, TensorBits], where: str) -> dict[str, tuple[Tensor, str]]:
        """Return new bits and the patch's name of every tensor to write, by name in the target.

        Args:
            found: the target's tensors.
            where: the target in words.

        Raises:
            PatchMismatch: the target does not hold the state to start from, or the patch is
                damaged.
        """
        placement = place(self.entries, found, forward=self.forward)
        if not placement.fits:
            raise self._mismatch(placement, found, where)
        changes: dict[str, tuple[Tensor, str]] = {}
        for there, name in placement.names.items():
            if name not in self.deltas:
                continue
            bits = found[there].read() ^ self.deltas[name]
            if sha256_of(bits) != self.entries[name].expected(not self.forward).sha256:
                raise PatchMismatch(
                    f"the patch's difference for {name!r} is expected to lead to the digest in its "
                    "header; found other bits, so the patch is damaged. Fetch another copy of it."
                )
            changes[there] = (bits, name)
        return changes

    def changes_in_sets(
        self, sets: Sequence[WeightSet], where: str
    ) -> list[tuple[WeightSet, dict[str, Tensor]]]:
        """Return the new bits for each set of weights in a checkpoint.

        Sets without a weight of the model, such as a loss's buffers or the state of an optimizer,
        are left alone.

        Raises:
            PatchMismatch: the patch does not fit one of the sets, no set has its tensors, or an
                edited tensor would stay as it is in another place.
        """
        fitting: list[tuple[WeightSet, dict[str, Tensor]]] = []
        refusals: list[PatchMismatch] = []
        left: list[PatchMismatch] = []
        for weights in sets:
            ours = len(sets) == 1 or self._is_ours(weights)
            try:
                if ours:
                    fitting.append((weights, self._changes_in(weights)))
                else:
                    self._leftovers.refuse_in(weights)
            except PatchMismatch as error:
                (refusals if ours else left).append(error)
        if refusals and fitting:
            raise PatchMismatch(
                f"{where} holds several sets of weights and the patch is expected to fit all of "
                f"them, for the others would keep what was forgotten; found: {refusals[0]} "
                "Or remove that set from the checkpoint."
            ) from refusals[0]
        if refusals or (left and fitting):
            raise (refusals or left)[0]
        if not fitting:
            raise PatchMismatch(
                f"{where} is expected to hold tensors such as {list(self.entries)[:3]}; found "
                "none of them. Pass a checkpoint of the model that the patch was made for."
            )
        return fitting

    @property
    def _leftovers(self) -> Leftovers:
        return Leftovers(self.entries, self.deltas, self.forward)

    def _changes_in(self, weights: WeightSet) -> dict[str, Tensor]:
        placement = place(self.entries, weights.tensors, forward=self.forward)
        if placement.fits:
            self._leftovers.refuse_among(weights, placement.spare)
        changes = self.changes(weights.tensors, weights.where)
        return {name: bits for name, (bits, _) in changes.items()}

    def _is_ours(self, weights: WeightSet) -> bool:
        """Tell whether one set of several holds the patch's model, by its names or its values."""
        tensors = weights.tensors
        # moments may go by the names of the weights that they belong to
        if not of_optimizer(weights) and shares_names(self.entries, tensors):
            return True
        return (
            len(tensors) >= len(self.entries)
            and place(self.entries, tensors, forward=self.forward).fits
        )

    def _mismatch(
        self, placement: Placement, found: Mapping[str, TensorBits], where: str
    ) -> PatchMismatch:
        held, other = ("before", "after") if self.forward else ("after", "before")
        if self.deltas and place(self.entries, found, forward=not self.forward).fits:
            done, undo = ("applied", "revert") if self.forward else ("reverted", "apply")
            return PatchMismatch(
                f"{where} is expected to hold the weights {held} this edit; found those {other} "
                f"it: the patch is already {done}. Nothing to do, or {undo} it to go the other way."
            )
        shown = "; ".join(placement.problems[:_SHOWN_PROBLEMS])
        more = len(placement.problems) - _SHOWN_PROBLEMS
        cure = (
            "Load the weights that the patch was made from."
            if self.forward
            else "Revert the patches that were applied after this one first, newest first. If the "
            "model was trained, cast to another precision or run in train mode since (running "
            "statistics move), load weights that were saved right after the edit."
        )
        return PatchMismatch(
            f"{where} is expected to hold exactly the weights {held} this edit "
            f"({len(self.entries)} tensors); found {shown}"
            f"{f'; and {more} more' if more > 0 else ''}. Nothing was written. {cure}"
        )
