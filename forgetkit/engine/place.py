"""Where a run computes: device, precision and processes, as Accelerate sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from forgetkit.errors import BadHyperparameter
from forgetkit.moving import sent
from forgetkit.types import Batch, Inputs

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision: TypeAlias = Literal["no", "bf16", "fp16"]
PRECISIONS = ("no", "bf16", "fp16")
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Place:
    """Device, precision and rank of this process.

    Args:
        device: where tensors go.
        precision: autocast type of the passes, ``"no"`` for none.
        rank: index of this process.
        world: number of processes.
    """

    device: torch.device
    precision: Precision = "no"
    rank: int = 0
    world: int = 1

    @property
    def shard(self) -> tuple[int, int]:
        """Rank and number of processes, as ``SampleSet.batches`` wants them."""
        return self.rank, self.world

    def autocast(self, *, enabled: bool = True) -> AbstractContextManager[object]:
        """Return the autocast context of this precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        active = enabled and self.precision != "no"
        return torch.autocast(self.device.type, dtype=dtype, enabled=active)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, active for fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over processes."""
        if self.world == 1:
            return value
        from accelerate.utils import reduce

        summed = reduce(value.to(self.device), reduction="sum")
        if not isinstance(summed, Tensor):
            raise TypeError("accelerate.utils.reduce did not return a tensor")
        return summed

    def anywhere(self, holds: bool) -> bool:
        """Return whether something holds in any process; all of them have to ask."""
        return holds if self.world == 1 else float(self.total(torch.tensor(float(holds)))) > 0

    def mean_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over processes, in one message per type."""
        if self.world == 1:
            return
        for dtype in {parameter.dtype for parameter in parameters}:
            group = [parameter for parameter in parameters if parameter.dtype == dtype]
            for parameter in group:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            grads = [parameter.grad for parameter in group if parameter.grad is not None]
            flat = self.total(torch.cat([grad.reshape(-1) for grad in grads])) / self.world
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def moved(self, batch: Batch, dtype: torch.dtype | None = None) -> Batch:
        """Return the batch on this device, floating inputs in ``dtype`` when one is given."""
        return Batch(
            moved_inputs(batch.inputs, self.device, dtype),
            sent(batch.labels, self.device),
            batch.index,
            batch.total,
        )


def moved_inputs(inputs: Inputs, device: torch.device, dtype: torch.dtype | None) -> Inputs:
    """Return inputs on a device, floating tensors in ``dtype`` when one is given."""

    def one(value: Tensor) -> Tensor:
        return sent(value, device, dtype if value.is_floating_point() else None)

    if isinstance(inputs, Tensor):
        return one(inputs)
    return {name: one(value) for name, value in inputs.items()}


@contextmanager
def alone() -> Iterator[None]:
    """Let a process of a launch make runs of its own inside the block, on its own device.

    Without it the processes of a launch share the samples of one run, and each waits for all.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def choose_place(
    device: torch.device | str | None,
    mixed_precision: str | None,
    accelerator: Accelerator | None,
) -> Place:
    """Return the place that the request names, else a CUDA device where there is one.

    Without, it is the CPU: other accelerators do not all have the types that are needed, and are
    taken only when they are named. Processes are as Accelerate launched them.

    Raises:
        BadHyperparameter: an unknown precision or device, or a conflict with ``accelerator``.
    """
    place = _chosen(device, mixed_precision, accelerator)
    return replace(place, rank=0, world=1) if _ALONE.get() else place


def _chosen(
    device: torch.device | str | None,
    mixed_precision: str | None,
    accelerator: Accelerator | None,
) -> Place:
    if mixed_precision is not None and mixed_precision not in PRECISIONS:
        raise BadHyperparameter(
            f"on(mixed_precision={mixed_precision!r}): expected one of {', '.join(PRECISIONS)}; "
            "leave it out for full precision"
        )
    if accelerator is not None:
        given = str(accelerator.mixed_precision)
        if mixed_precision is not None and mixed_precision != given:
            raise BadHyperparameter(
                f"on(mixed_precision={mixed_precision!r}, accelerator=...): expected the "
                f"accelerator's own precision, found {given!r} there; build the Accelerator with "
                f"mixed_precision={mixed_precision!r} or leave mixed_precision out"
            )
        return Place(
            torch.device(accelerator.device) if device is None else _device(device),
            _precision(given),
            int(accelerator.process_index),
            int(accelerator.num_processes),
        )
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return Place(
        torch.device(state.device) if device is None else _device(device),
        _precision(mixed_precision or launched),
        int(state.process_index),
        int(state.num_processes),
    )


def _precision(name: str) -> Precision:
    if name == "bf16":
        return "bf16"
    if name == "fp16":
        return "fp16"
    if name == "no":
        return "no"
    raise BadHyperparameter(
        f"on(mixed_precision={name!r}): expected one of {', '.join(PRECISIONS)}; other precisions "
        "of Accelerate are not supported for unlearning"
    )


def _device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except TypeError as error:
        raise BadHyperparameter(
            f"on(device={device!r}): expected the name of a device or a torch.device, found "
            f"{type(device).__name__}; pass 'cpu' or 'cuda:0', say, or leave it out"
        ) from error
    except (RuntimeError, AssertionError) as error:
        raise BadHyperparameter(
            f"on(device={str(device)!r}): expected a device that this machine has, found an error "
            f"({error}); pass 'cpu' or a CUDA device, or leave it out"
        ) from error
    if found.type == "meta":
        raise BadHyperparameter(
            "on(device='meta'): expected a device that computes, found the one of shapes without "
            "numbers; pass 'cpu' or a CUDA device, or leave it out"
        )
    return found
