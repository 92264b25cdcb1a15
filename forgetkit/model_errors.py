"""Errors of a model on its inputs, in one sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from forgetkit.errors import DataError, ForgetkitError

_FLOATS = (
    "the images have a type that the model does not take: give floats, scaled and normalised as "
    "for training"
)
_MEMORY = (
    "the device has too little memory: take smaller batches (batch_size= of the loader or of the "
    "method), cut them into parts with .on(accumulate=...), or compute with "
    '.on(mixed_precision="bf16")'
)
_TWO_DEVICES = (
    "images and weights are on two devices: give the images on that of the model, and let every "
    "layer and tensor of it be registered (nn.ModuleList, register_buffer), so that it moves along"
)
_TWO_TYPES = re.compile(r"Input type \((\S+)\) and weight type \((\S+)\)")
_ACCELERATORS = ("cuda", "mps", "xpu", "npu")
_CURES = {
    "Input type": f"{_FLOATS}, and images before labels",
    "scalar type": f"{_FLOATS}, and images before labels",
    "to have the same dtype": _FLOATS,
    "Given groups": "the images have another number of channels or another shape than the model "
    "takes: give .run, .retain and .validate images as for training",
    "shapes cannot be multiplied": "the images have another size than the model takes: give .run, "
    ".retain and .validate images as for training",
    "must match the size of tensor": "the images have another size than the model takes: resize "
    "them as for training (--size on the command line)",
    "doesn't match model": "the images have another size than the model takes: resize them as for "
    "training (--size on the command line)",
    "unexpected keyword argument": "the model's forward does not take one of the entries of a "
    "batch: drop it in the data set or the collate_fn, or give (inputs, labels) pairs",
    "to be on the same device": "forward uses a tensor that is not where its input is: register it "
    "as a buffer, or make it with device=input.device: torch's default device is the CPU in a run",
    "inference tensor": "weights or images were made inside torch.inference_mode, which allows no "
    "gradients: make them outside of it, or under torch.no_grad",
    "does not require grad": "no gradient reaches the weights: the model's forward switches "
    "gradients off (torch.no_grad, torch.inference_mode, detach() or .data in it): take that out, "
    "or use a method that edits the head alone, such as lau",
    "out of memory": _MEMORY,
    "not enough memory": _MEMORY,
    "can't allocate memory": _MEMORY,
}
"""What to do about the commonest errors of torch, by a part of their text."""


def cure_of(error: Exception) -> str:
    """Return what the user can do about an error of the model."""
    if isinstance(error, MemoryError):  # often without a word
        return _MEMORY
    types = _TWO_TYPES.search(str(error))
    if types is not None and _device(types[1]) != _device(types[2]):
        return _TWO_DEVICES
    known = (cure for sign, cure in _CURES.items() if sign in str(error))
    return next(known, "mend the cause and run again")


def _device(tensor_type: str) -> str:
    """Return the kind of device in ``torch.cuda.FloatTensor``, ``CPUBFloat16Type`` and the like."""
    return next((kind for kind in _ACCELERATORS if kind in tensor_type.lower()), "cpu")


@contextmanager
def in_one_sentence(call: str) -> Iterator[None]:
    """Raise what the model or torch raises in the block as a ``DataError``.

    Args:
        call: what the user called, such as ``"audit()"``.
    """
    try:
        yield
    except ForgetkitError:
        raise
    except (
        AssertionError, RuntimeError, TypeError, ValueError, IndexError, MemoryError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{call}: expected a model and images that go together, found "
            f"{type(error).__name__}: {error}; {cure_of(error)}"
        ) from error
