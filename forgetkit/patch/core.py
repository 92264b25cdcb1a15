"""The patch itself: made from two states of one model, applied and reverted bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from forgetkit.checkpoint import (
    WEIGHT_FILES,
    open_checkpoint,
    refuse_folder,
    unread_weights,
    write_checkpoint,
)
from forgetkit.errors import MissingFile, PatchMismatch
from forgetkit.fingerprint import (
    TensorBits,
    from_bits,
    hash_all,
    model_tensors,
    plain_names,
    same_tensor_groups,
)
from forgetkit.patch.changes import Turn
from forgetkit.patch.header import Entry, check_request, decode, encode
from forgetkit.patch.placing import place
from forgetkit.whole_files import path_of, written_whole

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 3


class Patch:
    """The exact difference between two states of one model.

    Holds before XOR after of the raw bits of the tensors that changed, so that applying and
    reverting miss no bit in any dtype. Every tensor it was made from is fingerprinted, and nothing
    is written unless all of them fit.

    A patch undoes the forgetting for whoever has it together with the edited model. Where the
    request was to erase, do not hand it out, and delete it when undoing is no longer wanted.

    Args:
        entries: every tensor the patch was made from, by name.
        deltas: before XOR after of the changed ones, (bytes,) uint8 on the CPU.
        request: what was asked for, as JSON values.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        deltas: Mapping[str, Tensor],
        request: Mapping[str, object],
    ) -> None:
        self.entries = dict(entries)
        self._deltas = dict(deltas)
        self.request = dict(request)

    @classmethod
    def between(
        cls,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        request: Mapping[str, object],
    ) -> Patch:
        """Make the patch that turns ``before`` into ``after``.

        Args:
            before: every tensor of the model by its ``state_dict`` name, copied before the edit.
            after: the same after the edit; ``forgetkit.fingerprint.model_tensors(model)`` will
                do. Names of one tied tensor may be missing in ``before``.
            request: goal, method, hyper-parameters, seed and versions, as JSON values.

        Raises:
            PatchMismatch: the two differ in names, shapes or dtypes.
            BadHyperparameter: the request cannot be written as JSON.
            ModelError: a tensor is meta, sharded, sparse or quantized.
        """
        record = check_request(request)
        plain_before, plain_after = _by_plain_name(before), _by_plain_name(after)
        entries: dict[str, Entry] = {}
        deltas: dict[str, Tensor] = {}
        left = set(plain_before)
        described = {name: TensorBits.of(t, name) for name, t in plain_before.items()}
        changed_to = {name: TensorBits.of(t, name) for name, t in plain_after.items()}
        hash_all([*described.values(), *changed_to.values()])
        for group in _tied_groups(plain_before, plain_after):
            name = next((n for n in group if n in plain_before), "")
            if not name:
                raise _not_one_model(f"{group[0]!r} only after the edit")
            left -= set(group)
            old = described[name]
            new = changed_to[name]
            if (old.dtype, old.shape) != (new.dtype, new.shape):
                raise _not_one_model(
                    f"{name!r} as {old.dtype} {old.shape} before, {new.dtype} {new.shape} after"
                )
            aliases = tuple(n for n in group if n != name)
            entry = Entry(old.fingerprint, new.fingerprint.sha256, aliases)
            if entry.changed:
                deltas[name] = old.read() ^ new.read()
            entries[name] = entry
        if left:
            raise _not_one_model(f"{min(left)!r} only before the edit")
        return cls(entries, deltas, record)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that the edit changed."""
        return tuple(self._deltas)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored differences, without the header."""
        return sum(delta.numel() for delta in self._deltas.values())

    def apply(self, model: nn.Module) -> None:
        """Edit the model in place; parameters keep identity and storage.

        Raises:
            PatchMismatch: the model is not the one the patch was made from, or holds the edit
                already; nothing was written.
            ModelError: the model's tensors cannot be reached.
        """
        self._turn(model, forward=True)

    def revert(self, model: nn.Module) -> None:
        """Undo the edit in place, bit for bit.

        Patches that were applied later have to be reverted first.

        Raises:
            PatchMismatch: the model does not hold exactly the result of this patch; nothing was
                written.
            ModelError: the model's tensors cannot be reached.
        """
        self._turn(model, forward=False)

    def state_of(
        self, model: nn.Module, *, leave: Collection[str] = ()
    ) -> Literal["before", "after", "other"]:
        """Tell which of the two states the model is in; a patch without changes says ``"before"``.

        Args:
            model: to look at.
            leave: names of tensors that do not count, without the marks of wrappers.
        """
        live = model_tensors(model)
        plain = plain_names(live)
        found = _shared_bits({name: t for name, t in live.items() if plain[name] not in leave})
        entries = {name: entry for name, entry in self.entries.items() if name not in leave}
        if place(entries, found, forward=True).fits:
            return "before"
        return "after" if place(entries, found, forward=False).fits else "other"

    def apply_to_file(self, path: str | Path, out: str | Path | None = None) -> list[Path]:
        """Edit a checkpoint without building its model.

        Args:
            path: ``.safetensors``, a torch state dict (read with ``weights_only=True``), or a
                transformers or timm folder, sharded or not. A training checkpoint is edited in
                every set of the weights, however deep; optimizer states are left as they are.
            out: where to write the result; ``None`` replaces the checkpoint itself. Must not
                exist yet.

        Returns:
            The weight files that were written.

        Raises:
            PatchMismatch: the checkpoint holds other weights, or the edit already; or, in another
                place, weights that the patch does not fit, such as an average of them (EMA) or
                another file in the folder.
            ModelError: it cannot be read without running code from it, or ``out`` exists.
        """
        return self._turn_file(path_of(path, "path"), out, forward=True)

    def revert_file(self, path: str | Path, out: str | Path | None = None) -> list[Path]:
        """Undo the edit in a checkpoint; arguments and errors as in :meth:`apply_to_file`."""
        return self._turn_file(path_of(path, "path"), out, forward=False)

    def save(self, path: str | Path) -> Path:
        """Write the patch as one safetensors file, replacing a file of this name; return it.

        The folder is made where there is none.

        Raises:
            ModelError: there is a folder of this name.
            OSError: the folder cannot be written.
        """
        target = path_of(path, "path")
        refuse_folder(target)
        with written_whole(target) as partial:
            save_file(self._deltas, partial, metadata=encode(self.entries, self.request))
        return target

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch; no code in the file is ever run.

        Raises:
            PatchMismatch: the file is no patch, or damaged.
            MissingFile: there is no such file.
        """
        source = path_of(path, "path")
        if not source.is_file():
            raise MissingFile(
                f"path {source} is expected to be a patch file; found none. Pass a file written by "
                "Patch.save."
            )
        try:
            with safe_open(source, framework="pt") as stored:
                metadata = stored.metadata() or {}
                deltas = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise PatchMismatch(
                f"path {source} is expected to be a patch, which is a safetensors file; found "
                f"something else ({error}). Pass a file written by Patch.save."
            ) from error
        sizes = {n: d.numel() if d.dtype is torch.uint8 else -1 for n, d in deltas.items()}
        entries, request = decode(metadata, sizes, f"path {source}")
        return cls(entries, {name: deltas[name] for name in entries if name in deltas}, request)

    def _turn(self, model: nn.Module, *, forward: bool) -> None:
        live = model_tensors(model)
        changes = Turn(self.entries, self._deltas, forward).changes(_shared_bits(live), "model")
        once = {id(live[name]): name for name in reversed(changes)}  # tied tensors only once
        begun: list[str] = []
        with torch.no_grad():
            try:
                for name in once.values():
                    begun.append(name)
                    _write(live[name], changes[name][0])
            except BaseException:
                for name in begun:
                    bits, patch_name = changes[name]
                    # The write that failed may fail again; it then has left the tensor as it was.
                    with contextlib.suppress(RuntimeError):
                        _write(live[name], bits ^ self._deltas[patch_name])
                raise

    def _turn_file(self, path: Path, out: str | Path | None, *, forward: bool) -> list[Path]:
        sets = open_checkpoint(path)
        changes = Turn(self.entries, self._deltas, forward).changes_in_sets(sets, f"path {path}")
        unread = unread_weights(path, sets)
        if unread:
            raise PatchMismatch(
                f"path {path} is expected to hold no weights beside {', '.join(WEIGHT_FILES)} and "
                f"their shards; found {unread[:_SHOWN]}, which would keep what was forgotten. "
                "Remove them, or pass the weight file itself."
            )
        return write_checkpoint(path, changes, None if out is None else path_of(out, "out"))

    def __repr__(self) -> str:
        method = self.request.get("method", "no method named")
        return (
            f"Patch({method}: {len(self._deltas)} of {len(self.entries)} tensors changed, "
            f"{_readable(self.nbytes)})"
        )

    def __rich__(self) -> Table:
        """Show the changed tensors and the request as one table in a terminal."""
        from rich.table import Table  # printing only; keep the import of forgetkit light
        from rich.text import Text

        table = Table("tensor", "dtype", "shape", "size", title=repr(self), title_justify="left")
        for name, delta in self._deltas.items():
            print_before = self.entries[name].before
            table.add_row(
                name, print_before.dtype, str(print_before.shape), _readable(delta.numel())
            )
        lines = (f"{key}: {value}" for key, value in self.request.items())
        table.caption = Text("\n".join(lines), style="table.caption")  # brackets are no markup
        table.caption_justify = "left"
        return table


def _by_plain_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {short: tensors[name] for name, short in plain_names(tensors).items()}


def _tied_groups(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[list[str]]:
    """Group names of one tensor: live tensors show ties, copies taken one by one no longer do."""
    groups = same_tensor_groups(after)
    known = {name for group in groups for name in group}
    groups.extend([name] for name in before if name not in known)
    for group in groups:
        if not any(name in after for name in group):
            raise _not_one_model(f"{group[0]!r} only before the edit")
    return groups


def _shared_bits(live: Mapping[str, Tensor]) -> dict[str, TensorBits]:
    """Describe live tensors; all names of a tied tensor get one and the same description."""
    return {
        name: bits
        for group in same_tensor_groups(live)
        for bits in [TensorBits.of(live[group[0]], group[0])]
        for name in group
    }


def _write(tensor: Tensor, bits: Tensor) -> None:
    tensor.copy_(from_bits(bits, tensor.dtype, tensor.shape))


def _not_one_model(found: str) -> PatchMismatch:
    return PatchMismatch(
        "before and after are expected to hold the same tensors in the same shapes and dtypes; "
        f"found {found}. Take both from one model, with state_dict()."
    )


def _readable(size: int) -> str:
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
