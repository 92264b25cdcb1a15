"""Gradients by sample: batched by torch.func where it can, one by one where it cannot.

Every function takes ``logits_of(parameters, inputs)``: the model as a function of a dict of its
tensors, in eval mode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forgetkit.errors import ModelError
from forgetkit.losses import cross_entropy
from forgetkit.moving import sent
from forgetkit.types import Batch, Inputs

logger = logging.getLogger("forgetkit")

Parameters: TypeAlias = Mapping[str, Tensor]
Gradients: TypeAlias = dict[str, Tensor]
LogitsOf: TypeAlias = Callable[[Parameters, Inputs], Tensor]
SampleLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Logits (batch, classes) and labels (batch,) to a scalar: the mean over the batch."""

MEMORY = 2**30
"""Bytes that the gradients of the samples of one chunk may take, by default."""

_NOT_BATCHABLE = ("vmap", "batching rule", "functorch", "functional transform")
_MIXED_TYPES = ("scalar type", "input type")


def mixes_types(error: Exception) -> bool:
    """Tell whether an operation was given two types, as where a model's forward has an autocast.

    A plain pass takes them; the rules for batching and for forward differentiation do not.
    """
    return any(word in str(error).lower() for word in _MIXED_TYPES)


@contextmanager
def differentiable() -> Iterator[None]:
    """Select kernels that can be batched and differentiated twice, with gradients on.

    In a caller's inference mode, too, where torch.func gives zeros before PyTorch 2.11.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def per_sample_gradients(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    *,
    losses: Sequence[SampleLoss] = (cross_entropy,),
    labels: Tensor | None = None,
    memory: int = MEMORY,
) -> Iterator[Gradients]:
    """Yield the gradients of every sample's loss, chunk by chunk, one loss after another.

    The chunk is as large as ``memory`` allows, at most one batch. Where torch.func cannot batch
    the model, a warning says so and the samples go through one by one.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: what to read.
        losses: each gives a chunk of gradients of its own.
        labels: (samples,) read by ``Batch.index`` in place of the batches' labels.
        memory: bytes for the gradients of one chunk.

    Yields:
        Name to (chunk, *shape) in the parameter's type.

    Raises:
        DataError: there are no parameters.
    """
    found = BySample(logits_of, parameters, memory)
    for batch in batches:
        yield from found.of(batch, losses, labels)


class BySample:
    """Gradients by sample of one model, which remembers whether torch.func can batch it.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        memory: bytes for the gradients of one chunk.

    Raises:
        ModelError: there are no parameters.
    """

    def __init__(self, logits_of: LogitsOf, parameters: Parameters, memory: int = MEMORY) -> None:
        self._logits_of = logits_of
        self._parameters = detached(parameters)
        size = sum(p.numel() * p.element_size() for p in self._parameters.values())
        # twice: what is reduced from a gradient takes its size
        self._rows = max(1, memory // (2 * size))
        self._batchable = True

    def of(
        self, batch: Batch, losses: Sequence[SampleLoss], labels: Tensor | None = None
    ) -> Iterator[Gradients]:
        """Yield the gradients of a batch, chunk by chunk, one loss after another."""
        for piece in pieces(batch, self._rows):
            inputs, targets = seen(piece, self._parameters, labels)
            for loss in losses:
                found = self.batched(inputs, targets, loss)
                if found is None:
                    found = _looped(self._logits_of, self._parameters, inputs, targets, loss)
                yield found

    def batched(self, inputs: Inputs, targets: Tensor, loss: SampleLoss) -> Gradients | None:
        """Return the gradients of a chunk, or ``None`` where torch.func refuses the model."""
        found = None
        if self._batchable:
            found = _vmapped(self._logits_of, self._parameters, inputs, targets, loss)
            self._batchable = found is not None
        return found


def seen(
    batch: Batch, parameters: Parameters, labels: Tensor | None = None
) -> tuple[Inputs, Tensor]:
    """Return inputs and targets of a batch where the parameters are."""
    targets = batch.labels if labels is None else labels[batch.index.cpu()]
    return on_device(batch.inputs, parameters), sent(targets, device_of(parameters))


def _vmapped(
    logits_of: LogitsOf, parameters: Parameters, inputs: Inputs, targets: Tensor, loss: SampleLoss
) -> Gradients | None:
    """Return the gradients of a chunk, or ``None`` when torch.func refuses the model."""

    def single(weights: Parameters, one: Inputs, target: Tensor) -> Tensor:
        return loss(logits_of(weights, _mapped(one, _as_batch)), target[None])

    try:
        with differentiable():
            found: Gradients = torch.func.vmap(torch.func.grad(single), in_dims=(None, 0, 0))(
                dict(parameters), inputs, targets
            )
    except RuntimeError as error:
        if not (mixes_types(error) or any(w in str(error).lower() for w in _NOT_BATCHABLE)):
            raise
        logger.warning(
            "per-sample gradients: this model cannot be batched by torch.func (%s); going through "
            "the samples one by one, which is slower and gives the same numbers",
            str(error).splitlines()[0],
        )
        return None
    return {name: gradient.detach() for name, gradient in found.items()}


def _looped(
    logits_of: LogitsOf, parameters: Parameters, inputs: Inputs, targets: Tensor, loss: SampleLoss
) -> Gradients:
    """Return the gradients of a chunk by one backward pass a sample."""
    singles = [
        gradients(logits_of, parameters, rows_of(inputs, one), targets[one], loss)
        for one in (slice(row, row + 1) for row in range(len(targets)))
    ]
    return {name: torch.stack([single[name] for single in singles]) for name in parameters}


def gradients(
    logits_of: LogitsOf, parameters: Parameters, inputs: Inputs, targets: Tensor, loss: SampleLoss
) -> Gradients:
    """Return the gradient of the loss of one batch by plain autograd; zero where it is unused."""
    with differentiable():
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        value = loss(logits_of(leaves, inputs), targets)
        found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def lowest(draws: Tensor, most: int | None) -> Tensor:
    """Return the rows of the ``most`` lowest draws, in order; all rows for ``None``.

    With draws that belong to the samples it is a random subset whatever the order of the set.
    """
    rows = draws.argsort(stable=True)[: len(draws) if most is None else most]
    return rows.sort().values


def wide_type(device: torch.device) -> torch.dtype:
    """Return the type to sum in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def detached(parameters: Parameters) -> dict[str, Tensor]:
    """Return the tensors without history.

    Raises:
        ModelError: there are none.
    """
    if not parameters:
        raise ModelError(
            "gradients: expected parameters to differentiate by, found none; leave at least one "
            "parameter of the model trainable"
        )
    return {name: parameter.detach() for name, parameter in parameters.items()}


def on_device(inputs: Inputs, parameters: Parameters) -> Inputs:
    """Return inputs on the parameters' device, as tensors that gradients can be taken by."""
    device = device_of(parameters)
    return _mapped(inputs, lambda value: _ordinary(sent(value, device)))


def _ordinary(value: Tensor) -> Tensor:
    if not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()


def device_of(parameters: Parameters) -> torch.device:
    """Return where the parameters are."""
    return next(iter(parameters.values())).device


def _as_batch(value: Tensor) -> Tensor:
    return value[None]


def _mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return change(inputs)
    return {name: change(value) for name, value in inputs.items()}


def rows_of(inputs: Inputs, rows: slice | Tensor) -> Inputs:
    """Return some samples of a batch."""
    return _mapped(inputs, lambda value: value[rows])


def pieces(batch: Batch, most: int) -> Iterator[Batch]:
    """Yield a batch in parts of at most so many samples."""
    for start in range(0, len(batch), most):
        rows = slice(start, start + most)
        size = min(most, len(batch) - start)
        yield Batch(rows_of(batch.inputs, rows), batch.labels[rows], batch.index[rows], size)
