"""Files of tensors as named bits: safetensors and ``torch.save``; no code in them is ever run.

Safetensors files are changed at the bytes of the edited tensors only, so that undoing an edit gives
back the very same file. Torch files are read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from forgetkit.errors import ModelError
from forgetkit.fingerprint import TensorBits, byte_count, from_bits, is_dense, same_tensor_groups

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
_LENGTH_BYTES = 8

Keys = tuple[object, ...]
"""The way to a container within a file: keys of mappings and positions in lists."""


class TensorFile(Protocol):
    """One file of tensors.

    Attributes:
        path: the file.
    """

    path: Path

    def write(self, changes: Mapping[tuple[Keys, str], Tensor], target: Path) -> None:
        """Write a copy with new bits, by (set, name)."""
        ...


class SafetensorsFile:
    """A safetensors file, mapped into memory.

    Args:
        path: the file.

    Raises:
        ModelError: the header does not describe the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        try:
            self._read_header()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise unreadable(path, "a safetensors file", error) from error

    def _read_header(self) -> None:
        size = self.path.stat().st_size
        with self.path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            start = _LENGTH_BYTES + length
            if not 0 < length <= size - _LENGTH_BYTES:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        for name, record in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = _DTYPES[record["dtype"]], tuple(int(n) for n in record["shape"])
            first, last = (start + int(offset) for offset in record["data_offsets"])
            if not start <= first <= last <= size or last - first != byte_count(dtype, shape):
                raise ValueError(f"tensor {name!r} lies outside the file or has another size")
            self._places[name] = (dtype, shape, first, last)

    def tensors(self) -> dict[str, TensorBits]:
        """Return the bits of every tensor, read when asked for."""
        return {
            name: TensorBits(dtype, shape, partial(self._slice, first, last))
            for name, (dtype, shape, first, last) in self._places.items()
        }

    def _slice(self, first: int, last: int) -> Tensor:
        with self.path.open("rb") as stream:
            stream.seek(first)
            held = bytearray(stream.read(last - first))
        return torch.frombuffer(held, dtype=torch.uint8) if held else torch.empty(0).byte()

    def write(self, changes: Mapping[tuple[Keys, str], Tensor], target: Path) -> None:
        """Write a copy with new bits, by ((), name); every other byte stays as it is."""
        shutil.copyfile(self.path, target)
        with target.open("r+b") as stream:
            for (_, name), bits in changes.items():
                stream.seek(self._places[name][2])
                stream.write(bits.numpy().data)
            stream.flush()
            os.fsync(stream.fileno())


class TorchFile:
    """A file of ``torch.save``: one state dict, or a training checkpoint that holds some.

    Args:
        path: the file.

    Attributes:
        sets: the tensors of every mapping and list in it, however deep, each container once.
        state_dicts: those that a model is loaded from: under a key, or else the file itself.

    Raises:
        ModelError: not readable with ``weights_only=True``, or without tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise unreadable(path, "a state dict that needs no code to load", error) from error
        self.state_dicts = _state_dicts(self._content)
        self.sets = {
            keys: dense
            for keys, held in _tensor_sets(self._content).items()
            # a state dict is refused for a sparse tensor; elsewhere it is no weight of a model
            if (dense := held if keys in self.state_dicts else _dense(held))
        }
        if not self.sets:
            raise ModelError(
                f"path {path} is expected to hold a state dict (tensors by name), alone or under "
                f"a key; found {type(self._content).__name__} without one. Save "
                "model.state_dict() with torch.save or safetensors."
            )

    def tensors(self, keys: Keys) -> dict[str, TensorBits]:
        """Return the bits of one set by name."""
        held = self.sets[keys]
        described = {name: TensorBits.of(tensor, name) for name, tensor in held.items()}
        return {name: described[group[0]] for group in same_tensor_groups(held) for name in group}

    def write(self, changes: Mapping[tuple[Keys, str], Tensor], target: Path) -> None:
        """Write a copy with new bits, by (set, name)."""
        with torch.no_grad():
            for (keys, name), bits in changes.items():
                tensor = self.sets[keys][name]
                tensor.copy_(from_bits(bits, tensor.dtype, tensor.shape))
        torch.save(self._content, target)


def shown(keys: Keys) -> str:
    """Return the way to a container in words: ``ema/shadow``, ``optimizer/state[0]``."""
    text = "".join(f"/{key}" if isinstance(key, str) else f"[{key}]" for key in keys)
    return text.removeprefix("/")


def _tensor_sets(content: object) -> dict[Keys, dict[str, Tensor]]:
    """Return the tensors of every mapping and list in ``content``, the least deep first."""
    sets: dict[Keys, dict[str, Tensor]] = {}
    pending: deque[tuple[Keys, object]] = deque([((), content)])
    seen: set[int] = set()  # one container may stand in several places, or in itself
    while pending:
        keys, held = pending.popleft()
        if not isinstance(held, (Mapping, list, tuple)) or id(held) in seen:
            continue
        seen.add(id(held))
        items = list(held.items() if isinstance(held, Mapping) else enumerate(held))
        own = {
            key if isinstance(key, str) else f"[{key}]": value
            for key, value in items
            if isinstance(value, Tensor)
        }
        if own:
            sets[keys] = own
        pending.extend(((*keys, key), value) for key, value in items)
    return sets


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if is_dense(tensor)}


def _state_dicts(content: object) -> tuple[Keys, ...]:
    if not isinstance(content, Mapping):
        return ()
    nested = tuple(
        (key,) for key, value in content.items() if isinstance(key, str) and _names_tensors(value)
    )
    return nested or (((),) if _names_tensors(content) else ())


def _names_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def unreadable(path: Path, expected: str, error: Exception) -> ModelError:
    """Return the error for a file that is not what its name says."""
    # torch's next sentence advises to run the code in the file, with escape codes of a terminal
    reason = str(error).strip().split("\n")[0].split(" (1) In PyTorch")[0]
    reason = re.sub(r"\x1b\[[0-9;]*m", "", reason.partition("Re-running `torch.load`")[0]).strip()
    return ModelError(
        f"path {path} is expected to be {expected}; found otherwise "
        f"({type(error).__name__}: {reason}). Save the weights again with safetensors or "
        "torch.save(model.state_dict())."
    )
