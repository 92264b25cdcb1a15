"""Statistics of the gradients of a set: squares, absolute values, sums. Pure functions.

Every function takes ``logits_of(parameters, inputs)``, the model as a function of a dict of its
tensors in eval mode, and any iterable of batches, which it reads once. Sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from forgetkit.errors import DataError
from forgetkit.losses import cross_entropy
from forgetkit.moving import sent
from forgetkit.per_sample import (
    MEMORY,
    Gradients,
    LogitsOf,
    Parameters,
    SampleLoss,
    detached,
    device_of,
    gradients,
    on_device,
    wide_type,
)
from forgetkit.sample_sums import SampleSums, Transform
from forgetkit.types import Batch


def squared_norm(logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001  needs no labels
    """Return the squared l2 norm of the logits, mean over samples (MAS, loss-free SSD)."""
    return logits.float().square().sum(dim=1).mean()


def label_loss(label: int) -> SampleLoss:
    """Return the loss ``sqrt(p_y) * -log p_y`` of one label y, with p_y held constant.

    Its squared gradient is what label y adds to the expectation over the model's own labels.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001  the label is y
        log_probs = logits.float().log_softmax(dim=1)[:, label]
        return -((log_probs.detach() / 2).exp() * log_probs).mean()

    return loss


def sampled_label_loss(logits: Tensor, draws: Tensor) -> Tensor:
    """Return the cross-entropy to labels drawn from the model's softmax.

    Args:
        logits: (batch, classes).
        draws: (batch,) uniform numbers in [0, 1), passed in place of labels.
    """
    log_probs = logits.float().log_softmax(dim=1)
    below = log_probs.detach().exp().cumsum(dim=1) <= draws.to(log_probs.dtype)[:, None]
    drawn = below.sum(dim=1, keepdim=True).clamp(max=logits.shape[1] - 1)
    return -log_probs.gather(1, drawn).mean()


def mean_squared_gradients(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    *,
    loss: SampleLoss = cross_entropy,
    labels: Tensor | None = None,
    memory: int = MEMORY,
) -> Gradients:
    """Return the mean over samples of each sample's squared gradient.

    The result does not depend on the order or the size of the batches. With cross-entropy it is
    the diagonal of the empirical Fisher matrix.

    Raises:
        DataError: there are no parameters or no samples.
    """
    return _mean(torch.square, logits_of, parameters, batches, (loss,), labels, memory)


def mean_absolute_gradients(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    *,
    loss: SampleLoss = squared_norm,
    labels: Tensor | None = None,
    memory: int = MEMORY,
) -> Gradients:
    """Return the mean over samples of each sample's absolute gradient.

    Raises:
        DataError: there are no parameters or no samples.
    """
    return _mean(torch.abs, logits_of, parameters, batches, (loss,), labels, memory)


def fisher_diagonal(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    *,
    classes: int,
    draws: Tensor | None = None,
    memory: int = MEMORY,
) -> Gradients:
    """Return the diagonal of the Fisher matrix: the expectation is over the model's own labels.

        F = mean_x sum_y p_y(x) (d -log p_y(x) / d theta)^2

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: what to read.
        classes: width of the logits; K passes a sample.
        draws: (samples,) uniform numbers by ``Batch.index``: one label a sample is drawn from the
            model's softmax in place of the sum, K times cheaper and unbiased.
        memory: bytes for the gradients of one chunk.

    Raises:
        DataError: there are no parameters or no samples.
    """
    sampled = draws is not None
    losses = (sampled_label_loss,) if sampled else tuple(map(label_loss, range(classes)))
    return _mean(torch.square, logits_of, parameters, batches, losses, draws, memory)


def _mean(
    transform: Transform,
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    losses: Sequence[SampleLoss],
    labels: Tensor | None,
    memory: int,
) -> Gradients:
    """Return the mean over samples of the transformed gradients, added up over the losses."""
    sums = SampleSums(logits_of, parameters, transform, memory)
    reduction = _Mean(parameters, transform)
    for batch in batches:
        for number, found in enumerate(sums.of(batch, losses, labels)):
            reduction.add_sum(found, 0 if number else len(batch))
    return reduction.result()


def batch_squared_gradients(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    *,
    loss: SampleLoss = cross_entropy,
    labels: Tensor | None = None,
) -> Gradients:
    """Return the mean over batches of the squared gradient of the batch mean.

    The form of several published codes. It depends on the batch size and on which samples meet in
    a batch: where samples disagree it is about a batch size smaller than the per-sample form.

    Raises:
        DataError: there are no parameters or no samples.
    """
    reduction = _Mean(parameters, torch.square)
    for found, _ in _batch_gradients(logits_of, parameters, batches, loss, labels):
        reduction.add({name: gradient[None] for name, gradient in found.items()})
    return reduction.result()


def sum_of_gradients(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    *,
    loss: SampleLoss = cross_entropy,
    labels: Tensor | None = None,
) -> Gradients:
    """Return the gradient of the loss summed over all samples, with its sign.

    Raises:
        DataError: there are no parameters or no samples.
    """
    reduction = _Mean(parameters, lambda gradient: gradient)
    for found, samples in _batch_gradients(logits_of, parameters, batches, loss, labels):
        reduction.add({name: gradient[None] * samples for name, gradient in found.items()})
    return reduction.result(mean=False)


def _batch_gradients(
    logits_of: LogitsOf,
    parameters: Parameters,
    batches: Iterable[Batch],
    loss: SampleLoss,
    labels: Tensor | None,
) -> Iterator[tuple[Gradients, int]]:
    frozen = detached(parameters)
    for batch in batches:
        targets = batch.labels if labels is None else labels[batch.index.cpu()]
        inputs, targets = on_device(batch.inputs, frozen), sent(targets, device_of(frozen))
        yield gradients(logits_of, frozen, inputs, targets, loss), len(batch)


class _Mean:
    """Sums of transformed gradients in float64 (float32 where the device has no float64)."""

    def __init__(self, parameters: Parameters, transform: Callable[[Tensor], Tensor]) -> None:
        self._transform = transform
        self._count = 0
        self._types = {
            name: torch.promote_types(p.dtype, torch.float32) for name, p in parameters.items()
        }
        self._sums = {
            name: torch.zeros_like(p, dtype=wide_type(p.device), requires_grad=False)
            for name, p in parameters.items()
        }

    def add(self, chunk: Gradients) -> None:
        """Add a chunk of (samples, *shape)."""
        self._count += len(next(iter(chunk.values())))
        for name, gradient in chunk.items():
            wide = gradient.to(self._types[name])
            self._sums[name] += self._transform(wide).sum(dim=0)

    def add_sum(self, total: Gradients, samples: int) -> None:
        """Add what was summed over so many samples."""
        self._count += samples
        for name, value in total.items():
            self._sums[name] += value

    def result(self, *, mean: bool = True) -> Gradients:
        if self._count == 0:
            raise DataError(
                "gradients: expected at least one sample, found an empty set; pass samples"
            )
        samples = self._count if mean else 1
        return {name: (total / samples).to(self._types[name]) for name, total in self._sums.items()}
