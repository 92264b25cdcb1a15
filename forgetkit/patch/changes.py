"""From a patch and a target to the bits to write, with every check before the first write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from forgetkit.checkpoint import WeightSet
from forgetkit.errors import PatchMismatch
from forgetkit.fingerprint import TensorBits, sha256_of
from forgetkit.patch.header import Entry
from forgetkit.patch.placing import Placement, place

_SHOWN_PROBLEMS = 3
_MOST_BYTES_OF_A_CONSTANT = 8


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

        Sets that hold no tensor of the patch, such as a loss's buffers, are left alone.

        Raises:
            PatchMismatch: the patch does not fit one of the sets, or no set has its tensors.
        """
        fitting: list[tuple[WeightSet, dict[str, Tensor]]] = []
        refusals: list[PatchMismatch] = []
        for weights in sets:
            tensors = weights.tensors
            if len(sets) > 1 and not place(self.entries, tensors, forward=self.forward).named:
                continue
            try:
                self._refuse_copies(weights)
                changes = self.changes(tensors, weights.where)
            except PatchMismatch as error:
                refusals.append(error)
            else:
                fitting.append((weights, {name: bits for name, (bits, _) in changes.items()}))
        if refusals and fitting:
            raise PatchMismatch(
                f"{where} holds several sets of weights and the patch is expected to fit all of "
                f"them, for the others would keep what was forgotten; found: {refusals[0]} "
                "Or remove that set from the checkpoint."
            ) from refusals[0]
        if refusals:
            raise refusals[0]
        if not fitting:
            raise PatchMismatch(
                f"{where} is expected to hold tensors such as {list(self.entries)[:3]}; found "
                "none of them. Pass a checkpoint of the model that the patch was made for."
            )
        return fitting

    def _refuse_copies(self, weights: WeightSet) -> None:
        """Refuse a file with a second copy of a changed tensor, which loading might prefer."""
        placement = place(self.entries, weights.tensors, forward=self.forward)
        changed = {self.entries[name].expected(self.forward) for name in self.deltas}
        outlines = {(expected.dtype, expected.shape) for expected in changed}
        for name in placement.spare if placement.fits else []:
            there = weights.tensors[name]
            if (there.dtype, there.shape) not in outlines or there.fingerprint not in changed:
                continue
            # Constants of equal shape are no sign of a tie: a fresh bias has as many distinct
            # bytes as one number has.
            if len(there.read().unique()) > _MOST_BYTES_OF_A_CONSTANT:
                raise PatchMismatch(
                    f"{weights.where} is expected to hold each edited tensor once; found a copy "
                    f"named {name!r}, which would keep the unedited values. Make the patch from "
                    "model.state_dict(), which names tied tensors, or apply it to the model."
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
