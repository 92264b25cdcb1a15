"""What an edit of a checkpoint would leave behind: the edited tensors in places it does not reach.

A training checkpoint may hold its weights again: as an average (EMA) under other names or as a bare
list, deep in the state of a callback. Whoever loads that has back what was forgotten.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from forgetkit.checkpoint import WeightSet
from forgetkit.errors import PatchMismatch
from forgetkit.patch.header import Entry

_MOST_BYTES_OF_A_CONSTANT = 8
_LEAST_PART_OF_A_MODEL = 3  # its parameters are about half of the tensors beside batch norms
_OF_OPTIMIZER = re.compile(
    r"(^|[^a-z])(opt|optims?|optimi[sz]ers?)([^a-z]|$)"
    r"|(^|[^a-z])(exp_avg|exp_avg_sq|square_avg|momentum|momentum_buffer|moments?|grads?|gradients?)"
    r"([^a-z]|$)"
)
_CURE = (
    "Remove it from the checkpoint, and make a new one of the edited weights; moments and "
    "gradients are known by a key such as 'optimizer' or 'grads'."
)


def of_optimizer(weights: WeightSet) -> bool:
    """Tell whether a set is part of an optimizer's state: moments look like weights, but are none.

    They may go by the names of the weights, and stand in lists of their shapes. Gradients do, too.
    """
    keys = [key.lower() for key in weights.keys if isinstance(key, str)]
    return any(_OF_OPTIMIZER.search(key) and "ema" not in key for key in keys)


@dataclass(frozen=True)
class Leftovers:
    """The look-out for tensors that an edit would leave behind.

    Args:
        entries: every tensor the patch was made from, by name.
        changed: names of those that it changes.
        forward: apply, else revert.
    """

    entries: Mapping[str, Entry]
    changed: Collection[str]
    forward: bool

    def refuse_in(self, weights: WeightSet) -> None:
        """Refuse a set that nothing is written to, if it holds an edited tensor again.

        Raises:
            PatchMismatch: a copy of one, another version of one, or of all in a list.
        """
        self.refuse_among(weights, list(weights.tensors))
        if not of_optimizer(weights) and self._is_list_of_weights(weights):
            raise PatchMismatch(
                f"{weights.where} is expected to be no second set of weights; found a list of "
                f"{len(weights.tensors)} tensors of the shapes of the model, as an average of the "
                f"weights (EMA) has them, which would keep what was forgotten. {_CURE}"
            )

    def refuse_among(self, weights: WeightSet, spare: Collection[str]) -> None:
        """Refuse a set that holds an edited tensor again under a name that is not written to.

        Args:
            weights: the set.
            spare: its names that are not written to.

        Raises:
            PatchMismatch: a copy of one, or another version of one.
        """
        wanted = {self.entries[name].expected(self.forward) for name in self.changed}
        outlines = {(expected.dtype, expected.shape) for expected in wanted}
        for name in spare:
            there = weights.tensors[name]
            # Constants of equal shape are no sign of a tie: a fresh bias has as many distinct
            # bytes as one number has.
            if (
                (there.dtype, there.shape) in outlines
                and there.fingerprint in wanted
                and len(there.read().unique()) > _MOST_BYTES_OF_A_CONSTANT
            ):
                raise PatchMismatch(
                    f"{weights.where} is expected to hold each edited tensor once; found a copy "
                    f"named {name!r}, which would keep the unedited values. Where the two are tied "
                    "in the model, make the patch from model.state_dict(), which names tied "
                    f"tensors, or apply it to the model. Else: {_CURE}"
                )
            if not of_optimizer(weights) and self._is_version(name, weights):
                raise PatchMismatch(
                    f"{weights.where} is expected to hold each edited tensor once; found {name!r} "
                    "too, with the name and the shape of one but other values, as an average of "
                    f"the weights (EMA) has them, which would keep what was forgotten. {_CURE}"
                )

    def _is_version(self, name: str, weights: WeightSet) -> bool:
        """Tell whether a tensor is named like a changed one behind a prefix, and not edited.

        A good part of the model must stand behind that prefix, the changed tensors among it: names
        such as ``4.weight`` alone are those of other modules, too.
        """
        there = weights.tensors[name]
        for patched in self.changed:
            entry = self.entries[patched]
            for known in (patched, *entry.aliases):
                if there.shape == entry.before.shape and name.endswith(f".{known}"):
                    prefix = name.removesuffix(known)
                    if self._is_second_set(prefix, weights):
                        return there.fingerprint != entry.expected(not self.forward)
        return False

    def _is_second_set(self, prefix: str, weights: WeightSet) -> bool:
        held = {
            name
            for name, entry in self.entries.items()
            if any(
                prefix + known in weights.tensors
                and weights.tensors[prefix + known].shape == entry.before.shape
                for known in (name, *entry.aliases)
            )
        }
        enough = len(held) * _LEAST_PART_OF_A_MODEL >= len(self.entries)
        return enough and held.issuperset(self.changed)

    def _is_list_of_weights(self, weights: WeightSet) -> bool:
        """Tell whether tensors without names have the shapes of a good part of the model.

        The changed ones must be among them, and not be edited already.
        """
        tensors = list(weights.tensors.values())
        if any(not name.startswith("[") for name in weights.tensors) or (
            len(tensors) * _LEAST_PART_OF_A_MODEL < len(self.entries)
        ):
            return False
        shapes = Counter(there.shape for there in tensors)
        of_model = Counter(entry.before.shape for entry in self.entries.values())
        of_changed = Counter(self.entries[name].before.shape for name in self.changed)
        if not of_changed <= shapes <= of_model:
            return False
        edited = {self.entries[name].expected(not self.forward) for name in self.changed}
        outlines = {(done.dtype, done.shape) for done in edited}
        held = {t.fingerprint for t in tensors if (t.dtype, t.shape) in outlines}
        return not edited <= held
