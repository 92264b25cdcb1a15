"""Everything borrowed from the model and the process during a run, and given back after it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forgetkit.fingerprint import storage_key


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer once, by dotted path."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextmanager
def borrowed_randomness(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random for the block, and put the caller's states back."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  the caller's state
    accelerators = accelerator_states()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  user transforms draw from it
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        set_accelerator_states(accelerators)


def accelerator_states() -> list[Tensor]:
    """Return the random states of the accelerators, whatever their kind; none without one."""
    module, of_all = _random_module()
    if module is None:
        return []
    found: Any = getattr(module, f"get_rng_state{of_all}")()
    return list(found) if of_all else [found]


def set_accelerator_states(states: Sequence[Tensor]) -> None:
    """Put back what ``accelerator_states`` gave on a machine with as many."""
    module, of_all = _random_module()
    if module is not None and states:
        getattr(module, f"set_rng_state{of_all}")(list(states) if of_all else states[0])


def _random_module() -> tuple[Any, str]:
    """Return the module of the accelerator, if any, and what its functions for all end in."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return None, ""
    module = torch.get_device_module(kind)
    return module, "_all" if hasattr(module, "get_rng_state_all") else ""  # MPS is always one


@contextmanager
def borrowed_flags(model: nn.Module) -> Iterator[None]:
    """Put back ``training`` per module, ``requires_grad`` and ``grad`` per parameter.

    A buffer that a forward pass put in the place of another gives its value to that one.
    """
    buffers = [(m, *pair) for m in model.modules() for pair in m.named_buffers(recurse=False)]
    training = [(module, module.training) for module in model.modules()]
    required = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in required:
            parameter.grad = None
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag, grad in required:
            if parameter.requires_grad != flag:  # torch refuses to set some, even to what they are
                parameter.requires_grad_(flag)
            parameter.grad = grad
        for module, name, tensor in buffers:
            now = getattr(module, name)
            if now is not tensor:
                if isinstance(now, Tensor) and now.shape == tensor.shape:
                    tensor.data.copy_(now)
                setattr(module, name, tensor)


@contextmanager
def rolled_back_on_error(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield copies of the tensors; write them back, bit for bit, when the block raises.

    ``BaseException`` is caught on purpose: Ctrl-C must not leave a half-edited model either.
    """
    before = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    try:
        yield before
    except BaseException:
        write_back(tensors, before)
        raise


def write_back(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into tensors in place, keeping identity and storage.

    One whose elements share memory, as an expanded buffer's do, cannot have been written to.
    """
    with torch.no_grad():
        for name, value in values.items():
            if not shares_places(tensors[name]):
                tensors[name].data.copy_(value)


def shares_places(tensor: Tensor) -> bool:
    """Return whether elements of a tensor are one place in memory, so that none can be set."""
    return any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _same_memory(one: Tensor, other: Tensor) -> bool:
    strided = one.layout == other.layout == torch.strided
    return strided and storage_key(one) == storage_key(other)


class Storage:
    """The model's tensors on another device, half-precision ones in float32.

    The ``Parameter`` objects stay; only their ``data`` points elsewhere for a while. On leaving,
    edited tensors are copied into the original memory, in the original type; also those that a
    method has given other memory, as ``torch.nn.utils.vector_to_parameters`` does.

    Args:
        tensors: every parameter and buffer of the model by dotted path.
        edited: the names that the run may change.
        device: where the run computes.
        widened: the names that are in float32 for a while, as layers that work together have to
            agree on a type; all by default.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        edited: set[str],
        device: torch.device,
        *,
        widened: set[str] | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self._edited = edited
        self._widened = set(self._tensors) if widened is None else widened
        self._device = device
        self._home: dict[str, Tensor] = {}

    @property
    def halved(self) -> dict[str, torch.dtype]:
        """Tensors in float32 whose own type has less than 32 bits, with that type."""
        return {
            name: self._home[name].dtype
            for name in self._widened & self._home.keys()
            if self._home[name].is_floating_point() and self._home[name].element_size() < 4
        }

    @contextmanager
    def borrowed(self) -> Iterator[Storage]:
        """Move on entry, give back on exit, whatever happens in between."""
        try:
            for name, tensor in self._tensors.items():
                half = tensor.is_floating_point() and tensor.element_size() < 4
                dtype = torch.float32 if half and name in self._widened else tensor.dtype
                moves = tensor.device != self._device or tensor.dtype != dtype
                if moves or tensor.layout == torch.strided:
                    self._home[name] = tensor.data
                if moves:
                    tensor.data = tensor.data.to(self._device, dtype)
            yield self
        finally:
            try:
                for name, home in self._home.items():  # in order: homes may overlap
                    data = self._tensors[name].data
                    if name in self._edited and not (
                        _same_memory(data, home) or shares_places(home)
                    ):
                        home.copy_(data)
            finally:  # a copy may find no memory, or Ctrl-C: all go home even so
                for name, home in self._home.items():
                    if not _same_memory(self._tensors[name].data, home):
                        self._tensors[name].data = home
                self._home.clear()

    @contextmanager
    def in_own_precision(self) -> Iterator[None]:
        """Round masters to the model's own type for the block, as the caller will see them."""
        masters = {name: self._tensors[name].data for name in self.halved}
        try:
            for name, dtype in self.halved.items():
                self._tensors[name].data = masters[name].to(dtype)
            yield
        finally:
            for name, master in masters.items():
                self._tensors[name].data = master
