"""Checkpoints, a file or a folder of files: opened without building a model, rewritten whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from forgetkit.errors import ModelError
from forgetkit.fingerprint import TensorBits, dtype_from_name, from_bits
from forgetkit.tensor_files import Keys, SafetensorsFile, TensorFile, TorchFile, shown, unreadable
from forgetkit.whole_files import beside, written_whole

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_STEMS = ("model", "pytorch_model", "adapter_model")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_FOREIGN_WEIGHTS = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot")


@dataclass(frozen=True)
class WeightSet:
    """Tensors that stand together in a checkpoint: one file, several shards, or part of a file.

    Args:
        keys: the way to the set inside its file, empty at the top.
        where: the place in words, for messages.
        loadable: whether a model is loaded from it; not so from what lies deeper in a file.
        tensors: bits by name; tied names of one file share one object.
        homes: the file of every name.
    """

    keys: Keys
    where: str
    loadable: bool
    tensors: dict[str, TensorBits]
    homes: dict[str, TensorFile]


def open_checkpoint(path: Path) -> list[WeightSet]:
    """Return every set of tensors that a file or folder holds.

    Args:
        path: ``.safetensors``, a torch state dict, or a folder with ``model.safetensors`` or
            ``pytorch_model.bin``, or with the index of a sharded one.

    Raises:
        ModelError: nothing there, or not readable without running code from it.
    """
    if path.is_file():
        return _sets_of([path])
    if not path.is_dir():
        raise ModelError(
            f"path {path} is expected to be a checkpoint file or folder; found nothing there. "
            "Check the path."
        )
    stores = [[path / name] for name in WEIGHT_FILES if (path / name).is_file()]
    stores += [_shards(path / name) for name in INDEX_FILES if (path / name).is_file()]
    if not stores:
        raise ModelError(
            f"path {path} is expected to hold one of {', '.join((*WEIGHT_FILES, *INDEX_FILES))}; "
            f"found {sorted(p.name for p in path.iterdir())[:6]}. Pass the weight file itself."
        )
    return [weights for files in stores for weights in _sets_of(files)]


def holds_weights(name: str) -> bool:
    """Tell by its name whether a file of a model's folder holds weights."""
    return name in (*INDEX_FILES, *_FOREIGN_WEIGHTS) or (
        Path(name).suffix in _SUFFIXES and name.startswith(_STEMS)
    )


def unread_weights(path: Path, sets: Sequence[WeightSet]) -> list[str]:
    """Return the names of files in a folder that hold weights but are not among ``sets``.

    Adapters do not count: they go with another model.
    """
    if not path.is_dir():
        return []
    read = {home.path.name for weights in sets for home in weights.homes.values()}
    return sorted(
        file.name
        for file in path.iterdir()
        if holds_weights(file.name)
        and file.name not in {*read, *INDEX_FILES}
        and not file.name.startswith("adapter_")
    )


def write_checkpoint(
    path: Path, changes: Sequence[tuple[WeightSet, Mapping[str, Tensor]]], out: Path | None
) -> list[Path]:
    """Write new bits into a checkpoint, all files or none.

    Args:
        path: what was opened.
        changes: new bits (bytes,) uint8 by name, for some of its sets.
        out: a path that does not exist yet, for the result; ``None`` replaces the original.

    Returns:
        The weight files written.

    Raises:
        ModelError: ``out`` exists, or its suffix is that of another format.
    """
    by_file: dict[Path, tuple[TensorFile, dict[tuple[Keys, str], Tensor]]] = {}
    for weights, new in changes:
        for name, home in weights.homes.items():
            _, edits = by_file.setdefault(home.path, (home, {}))
            if name in new:
                edits[weights.keys, name] = new[name]
    if out is None:
        return _write_over(by_file)
    if out.exists():
        raise ModelError(
            f"out {out} is expected not to exist; found a {'folder' if out.is_dir() else 'file'}. "
            "Choose another path or remove it."
        )
    if path.is_file():
        if (path.suffix == ".safetensors") != (out.suffix == ".safetensors"):
            raise ModelError(
                f"out {out} is expected to end like the checkpoint, in {path.suffix!r}, because "
                f"its format stays; found {out.suffix!r}. Choose such a name."
            )
        [(file, edits)] = by_file.values()
        with written_whole(out) as partial:
            file.write(edits, partial)
        return [out]
    with written_whole(out) as folder:
        shutil.copytree(
            path, folder, ignore=lambda _, names: {n for n in names if path / n in by_file}
        )
        for original, (file, edits) in by_file.items():
            file.write(edits, folder / original.name)
    return [out / original.name for original in by_file]


def _write_over(
    by_file: Mapping[Path, tuple[TensorFile, Mapping[tuple[Keys, str], Tensor]]],
) -> list[Path]:
    moves: list[tuple[Path, Path]] = []
    try:
        for original, (file, edits) in by_file.items():
            if edits:
                target = original.resolve()  # a hub cache holds links; keep them links
                moves.append((beside(target), target))
                file.write(edits, moves[-1][0])
                shutil.copymode(target, moves[-1][0])
        replace_all(moves)
    finally:
        for partial, _ in moves:
            partial.unlink(missing_ok=True)
    return [target for _, target in moves]


def replace_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move files over others; if one move fails, put back what was there before.

    Args:
        moves: (new file, place to put it), both on one file system.
    """
    if len(moves) == 1:  # one move is atomic by itself
        moves[0][0].replace(moves[0][1])
        return
    done: list[tuple[Path, Path | None]] = []
    try:
        for new, target in moves:
            kept = beside(target) if target.exists() else None
            done.append((target, kept))
            if kept is not None:
                target.replace(kept)
            new.replace(target)
    except BaseException:
        for target, kept in reversed(done):
            if kept is None:
                target.unlink(missing_ok=True)
            elif kept.exists():
                kept.replace(target)
        raise
    for _, kept in done:
        if kept is not None:
            kept.unlink()


def refuse_folder(path: Path) -> None:
    """Refuse a folder where a file is to be written.

    Raises:
        ModelError: there is a folder of this name.
    """
    if path.is_dir():
        raise ModelError(
            f"path {path} is expected to be a file to write; found a folder. Name a file in it."
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint that holds one set of weights.

    Args:
        path: as in :func:`open_checkpoint`.

    Raises:
        ModelError: nothing there, several sets or none within reach, or not readable without
            running code from it.
    """
    held = open_checkpoint(Path(path))
    sets = [weights for weights in held if weights.loadable]
    if len(sets) != 1:
        raise ModelError(
            f"state_dict {path} is expected to hold one set of weights, alone or under a key; "
            f"found {[weights.where for weights in sets or held][:6]}. Save the one you mean in a "
            "file of its own."
        )
    return {
        name: from_bits(bits.read(), dtype_from_name(bits.dtype), bits.shape).clone()
        for name, bits in sets[0].tensors.items()
    }


def _sets_of(files: Sequence[Path]) -> list[WeightSet]:
    """Return the sets of one file, or of several shards taken together."""
    sets: dict[Keys, WeightSet] = {}
    for path in files:
        file: SafetensorsFile | TorchFile
        held: dict[Keys, dict[str, TensorBits]]
        loadable: tuple[Keys, ...] = ((),)
        if path.suffix == ".safetensors":
            file = SafetensorsFile(path)
            held = {(): file.tensors()}
        else:
            file = TorchFile(path)
            held = {keys: file.tensors(keys) for keys in file.sets}
            loadable = file.state_dicts
        for keys, tensors in held.items():
            where = f"{files[0]}{f' [{shown(keys)}]' if keys else ''}"
            weights = sets.setdefault(keys, WeightSet(keys, where, keys in loadable, {}, {}))
            weights.tensors.update(tensors)
            weights.homes.update(dict.fromkeys(tensors, file))
    return list(sets.values())


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(index, "the index of a sharded checkpoint", error) from error
    strangers = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    absent = [
        name for name in names if name not in strangers and not (index.parent / name).is_file()
    ]
    if strangers or absent or not names:
        raise ModelError(
            f"path {index} is expected to name files beside it; found {(strangers or absent)[:3]}. "
            "Fetch the complete checkpoint."
        )
    return [index.parent / name for name in names]
