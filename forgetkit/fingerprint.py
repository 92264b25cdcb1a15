"""The raw bits of tensors, their fingerprints, and the names that tensors go by.

Two tensors are the same when dtype, shape and every bit agree: NaNs, signed zeros and padding
included. A fingerprint is the SHA-256 of the bits in row-major order, so it does not depend on
device, strides or on how the tensor is stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from forgetkit.errors import ModelError

_WRAPPER_SEGMENT = "_orig_mod"  # torch.compile inserts it wherever a module was compiled
_MOST_THREADS = 8  # more are no use: memory is then the limit
_WRAPPER_PREFIX = "module."  # DataParallel, DistributedDataParallel and many training scripts


class TensorPrint(NamedTuple):
    """What identifies the content of one tensor.

    Args:
        dtype: name of the dtype without ``torch.``, such as ``bfloat16``.
        shape: size of every axis.
        sha256: hexadecimal digest of the bits, row-major, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


class TensorBits:
    """One tensor as bits, read only when asked for, hashed at most once.

    Args:
        dtype: name of the dtype without ``torch.``.
        shape: size of every axis.
        read: returns the bits, (bytes,) uint8 on the CPU.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], read: Callable[[], Tensor]) -> None:
        self.dtype = dtype
        self.shape = shape
        self.read = read

    @classmethod
    def of(cls, tensor: Tensor, name: str = "tensor") -> TensorBits:
        """Describe a live tensor; its bits are copied only if it is not plain CPU memory.

        Raises:
            ModelError: the tensor has no bits of its own here (meta, sharded, sparse, quantized).
        """
        _require_plain(tensor, name)
        return cls(dtype_name(tensor.dtype), tuple(tensor.shape), lambda: bits_of(tensor))

    @cached_property
    def fingerprint(self) -> TensorPrint:
        """Digest of the bits as they were when this was first asked for."""
        return TensorPrint(self.dtype, self.shape, sha256_of(self.read()))


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def dtype_from_name(name: str) -> torch.dtype:
    """Return the dtype of this name.

    Raises:
        ModelError: this version of torch has no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(
            f"dtype {name!r} is expected to be one that torch {torch.__version__} knows; it has "
            "none of that name. Use the version of torch that wrote the file."
        )
    return dtype


def byte_count(dtype: str, shape: Iterable[int]) -> int:
    """Return how many bytes a dense tensor takes."""
    return math.prod(shape) * dtype_from_name(dtype).itemsize


def bits_of(tensor: Tensor) -> Tensor:
    """Return the bits of a dense tensor, (bytes,) uint8 on the CPU, row-major.

    The result may share memory with the tensor; do not write to it.
    """
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two dense tensors of one type hold the same bits."""
    return torch.equal(bits_of(one), bits_of(other))


def from_bits(bits: Tensor, dtype: torch.dtype, shape: Iterable[int]) -> Tensor:
    """Return the tensor that has these bits, sharing their memory."""
    return bits.view(dtype).reshape(tuple(shape))


def sha256_of(bits: Tensor) -> str:
    """Return the hexadecimal SHA-256 of bits, (bytes,) uint8 on the CPU."""
    return hashlib.sha256(bits.numpy().data).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, TensorPrint]:
    """Return the print of every tensor by name.

    Raises:
        ModelError: a tensor is meta, sharded, sparse or quantized.
    """
    described = {name: TensorBits.of(tensor, name) for name, tensor in tensors.items()}
    hash_all(described.values())
    return {name: bits.fingerprint for name, bits in described.items()}


def hash_all(tensors: Iterable[TensorBits]) -> None:
    """Compute fingerprints ahead, several at a time: hashing releases the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda bits: bits.fingerprint, tensors))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the live tensors that a checkpoint of the model would hold, by name.

    A tensor that is tied under several names appears under each of them; non-persistent buffers
    do not appear. Writing to the returned tensors writes to the model.

    Raises:
        ModelError: not a module, or its ``state_dict`` hands out copies, so that writing to
            them would not reach the model.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model is expected to be a torch.nn.Module; found {type(model).__name__}. "
            "Build the model first, or name its file to apply_to_file or revert_file."
        )
    live = {id(t) for t in (*model.parameters(), *model.buffers())}
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):  # extra state of a module may be any object
            continue
        if id(value) not in live:
            raise ModelError(
                f"model.state_dict()[{name!r}] is expected to be the model's own tensor; found a "
                "copy made by a state-dict hook or a quantised layer. Remove the hook, unwrap the "
                "model, or edit it before quantising."
            )
        tensors[name] = value
    return tensors


def storage_key(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that two names share exactly when they are one tensor in one place."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return ("object", id(tensor))
    return (
        str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(),
        tensor.is_conj(), tensor.is_neg(),
    )  # fmt: skip


def overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether writing to one tensor changes the other."""
    here, there = _span(one), _span(other)
    if here is None or there is None or one.device != other.device:
        return False
    (first, end), (begin, last) = here, there
    if first >= last or begin >= end:
        return False
    size = one.element_size()
    if other.element_size() != size or (first - begin) % size:
        return True  # read as another type; the parts that interleave are not told apart
    start = min(first, begin)
    taken = torch.zeros((max(end, last) - start) // size, dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), (first - start) // size).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), (begin - start) // size).any())


def _span(tensor: Tensor) -> tuple[int, int] | None:
    """Return the first address of a tensor and the one behind its last, if it has memory."""
    if tensor.numel() == 0 or tensor.is_meta or tensor.layout != torch.strided:
        return None
    if hasattr(tensor, "__tensor_flatten__"):  # made of other tensors
        return None
    steps = sum(step * (n - 1) for step, n in zip(tensor.stride(), tensor.shape, strict=True))
    first = tensor.data_ptr()
    return first, first + (steps + 1) * tensor.element_size()


def same_tensor_groups(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Group names by the tensor they stand for, each in the order of the mapping."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(storage_key(tensor), []).append(name)
    return list(groups.values())


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to what they are without the marks of compile and data-parallel wrappers.

    ``_orig_mod`` is dropped wherever it stands; ``module.`` in front only if every name has it.

    Raises:
        ModelError: two names would become one.
    """
    plain = {
        name: ".".join(part for part in name.split(".") if part != _WRAPPER_SEGMENT)
        for name in names
    }
    for _ in count():
        if not plain or not all(name.startswith(_WRAPPER_PREFIX) for name in plain.values()):
            break
        plain = {name: short.removeprefix(_WRAPPER_PREFIX) for name, short in plain.items()}
    if len(set(plain.values())) != len(plain):
        raise ModelError(
            "tensor names are expected to stay different without '_orig_mod' and 'module.'; found "
            f"two that become one among {sorted(plain)[:4]}. Unwrap the model first."
        )
    return plain


def model_prints(model: nn.Module) -> dict[str, TensorPrint]:
    """Return the fingerprint of every tensor of a model by its name without wrappers' marks."""
    tensors = model_tensors(model)
    plain = plain_names(tensors)
    return {plain[name]: found for name, found in fingerprint(tensors).items()}


def digest(prints: Mapping[str, TensorPrint]) -> str:
    """Return one SHA-256 for a whole model."""
    listed = sorted((name, *found) for name, found in prints.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has bits of its own here."""
    return (
        tensor.device.type != "meta"
        and not hasattr(tensor, "full_tensor")
        and tensor.layout == torch.strided
        and not tensor.is_quantized
    )


def _require_plain(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise ModelError(
            f"{name} is expected to be a tensor; found {type(tensor).__name__}. "
            "Pass a mapping of names to tensors, such as model.state_dict()."
        )
    if tensor.device.type == "meta":
        found, cure = "a meta tensor without values", "Load the weights first."
    elif hasattr(tensor, "full_tensor"):
        found, cure = "a shard of a distributed tensor", "Gather the full state dict first."
    elif tensor.layout != torch.strided:
        found, cure = f"layout {tensor.layout}", "Turn it into a dense tensor first."
    elif tensor.is_quantized:
        found, cure = f"quantized dtype {tensor.dtype}", "Edit the model before quantizing it."
    else:
        return
    raise ModelError(f"{name} is expected to be a dense tensor with values; found {found}. {cure}")
