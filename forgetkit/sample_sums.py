"""Sums over samples of the square, or the size, of each sample's gradient, a batch at a time.

A linear map or convolution with inputs x_il and output gradients g_il, at the places l of sample i,
has the gradient G_i = sum_l g_il x_il^T for that sample. One backward pass of a whole batch tells
all x and g, and where a sample has one place, the sum needs no G_i at all:

    sum_i G_i^2 = (g^2)^T (x^2)      and      sum_i |G_i| = |g|^T |x|

Normalisation layers and parameters that are added, multiplied or expanded are told apart by sample
likewise. What is used otherwise is left to ``per_sample``. So is what the first batch of
each size tells wrong: a sum that is not autograd's, a sample with another gradient alone, a loss
that reaches rows of other samples. What a model mixes in later batches alone goes unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from forgetkit.parameter_uses import Use, Watch
from forgetkit.per_sample import (
    MEMORY,
    BySample,
    Gradients,
    LogitsOf,
    Parameters,
    SampleLoss,
    detached,
    rows_of,
    seen,
)
from forgetkit.types import Batch, Inputs

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""Square or absolute value: of a product it is the product of those of its factors."""

Uses: TypeAlias = Mapping[str, Sequence[Use]]
"""By name of the parameter."""

_HELD = 1 << 24  # entries of single gradients that are made at once: more is not quicker
_LARGEST_REST = 0.5  # share of the entries that may be left over for this to be worth it
_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the largest entry of a gradient
_CLOSE_IN_HALF = 5e-2
_NOTHING = 1e-3  # of the largest entry of all: a gradient that is zero but for rounding


class SampleSums:
    """Sums one batch after the other, and keeps what the first one told about the model.

    Args:
        logits_of: the model as a function, in eval mode.
        parameters: tensors to differentiate by, by name.
        transform: ``torch.square`` or ``torch.abs``.
        memory: bytes for the single gradients that are made at once.

    Raises:
        ModelError: there are no parameters.
    """

    def __init__(
        self,
        logits_of: LogitsOf,
        parameters: Parameters,
        transform: Transform,
        memory: int = MEMORY,
    ) -> None:
        self._logits_of = logits_of
        self._parameters = detached(parameters)
        self._transform = transform
        self._memory = memory
        self._types = {
            name: torch.promote_types(p.dtype, torch.float32)
            for name, p in self._parameters.items()
        }
        self._checked: set[int] = set()  # sizes of batches that were looked at
        self._whole = True  # whether a pass of a whole batch tells enough to be worth it
        self._untold: set[str] = set()  # parameters of which it tells something wrong
        self._single: dict[frozenset[str], BySample] = {}
        frozen = self._parameters

        def with_the_others(given: Parameters, inputs: Inputs) -> Tensor:
            return logits_of({**frozen, **given}, inputs)

        self._with_the_others = with_the_others

    def of(
        self, batch: Batch, losses: Sequence[SampleLoss], labels: Tensor | None = None
    ) -> Iterator[Gradients]:
        """Yield, for one loss after the other, the sum over a batch.

        Args:
            batch: samples.
            losses: logits and labels to a mean over the batch.
            labels: (samples,) read by ``Batch.index`` in place of the batch's labels.

        Yields:
            Name to the sum of the transformed gradients, in the parameter's shape and at least
            float32.
        """
        inputs, targets = seen(batch, self._parameters, labels)
        whole = self._whole and len(targets) > 0 and not _inference(inputs)
        passed = self._forward(inputs, len(targets)) if whole else None
        for number, loss in enumerate(losses, 1):
            uses: Uses = {}
            if self._whole and passed is not None:
                check = len(targets) not in self._checked
                uses, sums = passed.backward(loss, targets, again=check or number < len(losses))
                if check:
                    self._check(uses, sums, inputs, targets, loss)
                    self._find_shared(passed, targets, loss)
                    # the passes of single samples have taken the place of that of the batch
                    uses, _ = passed.backward(loss, targets, again=number < len(losses))
                    self._whole = self._is_worth_it()
            told = {
                name: self._summed(name, own, self._transform)
                for name, own in uses.items()
                if self._whole and name not in self._untold
            }
            rest = frozenset(self._parameters) - frozenset(told)
            yield told | self._one_by_one(rest, batch, loss, labels)

    def _forward(self, inputs: Inputs, samples: int) -> _Passed:
        leaves = {name: p.detach().requires_grad_() for name, p in self._parameters.items()}
        with torch.enable_grad(), Watch(leaves, samples) as watch:
            return _Passed(leaves, watch, self._logits_of(leaves, inputs))

    def _summed(self, name: str, uses: Sequence[Use], transform: Transform) -> Tensor:
        """Return the sum over the batch that the uses of a parameter tell."""
        parameter, kind = self._parameters[name], self._types[name]
        total = torch.zeros_like(parameter, dtype=kind)
        if not uses or parameter.numel() == 0:
            return total
        factors = uses[0].factors(kind) if len(uses) == 1 else None
        if factors is not None:
            left, right = map(transform, factors)
            return (left.mT @ right).reshape(parameter.shape)
        rows = max(1, min(_HELD, self._memory // 8) // parameter.numel())
        for start in range(0, uses[0].call.samples, rows):
            own = _gradients(uses, slice(start, start + rows), kind)
            total += transform(own).sum(dim=0)
        return total

    def _one_by_one(
        self, names: frozenset[str], batch: Batch, loss: SampleLoss, labels: Tensor | None
    ) -> Gradients:
        """Return the sums over gradients that are made sample by sample."""
        if not names:
            return {}
        found = {
            name: torch.zeros_like(self._parameters[name], dtype=self._types[name])
            for name in names
        }
        for chunk in self._single_of(names).of(batch, (loss,), labels):
            for name, gradient in chunk.items():
                found[name] += self._transform(gradient.to(self._types[name])).sum(dim=0)
        return found

    def _single_of(self, names: frozenset[str]) -> BySample:
        if names not in self._single:
            some = {name: p for name, p in self._parameters.items() if name in names}
            self._single[names] = BySample(self._with_the_others, some, self._memory)
        return self._single[names]

    def _check(
        self, uses: Uses, sums: Gradients, inputs: Inputs, targets: Tensor, loss: SampleLoss
    ) -> None:
        """Compare the first and the last sample's gradients with those that each has alone.

        And the sum of all with that of autograd, which knows every use.
        """
        self._checked.add(len(targets))
        ends = torch.tensor([0, len(targets) - 1], device=targets.device)
        alone = self._single_of(frozenset(self._parameters)).batched(
            rows_of(inputs, ends), targets[ends], loss
        )
        if alone is None:  # what a sample gives may depend on the others
            self._untold.update(self._parameters)
            return
        sizes = {
            n: float(found.abs().max()) if found.numel() else 0.0 for n, found in alone.items()
        }
        nothing = _NOTHING * max(sizes.values())
        for name, expected in alone.items():
            close = _CLOSE.get(expected.dtype, _CLOSE_IN_HALF)
            within = close * max(sizes[name], nothing)
            own = uses.get(name)
            wide = expected.to(self._types[name])
            if own is None or not _agree(own, wide, len(targets), within):
                self._untold.add(name)
            elif own:
                size = _largest(self._summed(name, own, torch.abs))
                missing = self._summed(name, own, torch.clone) - sums[name].to(wide)
                if not _largest(missing) <= close * max(size, nothing):
                    self._untold.add(name)

    def _find_shared(self, passed: _Passed, targets: Tensor, loss: SampleLoss) -> None:
        """Find the parameters with a use where one sample's loss reaches another one's rows."""
        for row in {0, len(targets) - 1}:
            uses, _ = passed.backward(loss, targets, again=True, only=row)
            for name, own in uses.items():
                if any(use.call.reaches_others(row) for use in own):
                    self._untold.add(name)

    def _is_worth_it(self) -> bool:
        entries = {name: p.numel() for name, p in self._parameters.items()}
        rest = sum(entries[name] for name in self._untold)
        return len(self._untold) < len(entries) and rest <= _LARGEST_REST * sum(entries.values())


class _Passed:
    """A batch that went forward.

    Args:
        leaves: the parameters that it went forward with.
        watch: what saw it.
        logits: (batch, classes) of it.
    """

    def __init__(self, leaves: Parameters, watch: Watch, logits: Tensor) -> None:
        self._leaves = leaves
        self._watch = watch
        self._logits = logits

    def backward(
        self, loss: SampleLoss, targets: Tensor, *, again: bool, only: int | None = None
    ) -> tuple[Uses, Gradients]:
        """Go backward from the sum of the samples' losses, or from that of one of them.

        Returns:
            Uses by name: none for a parameter without gradient; no entry for one that was used
            in a way that the watch does not know. And the gradients of the sum.
        """
        self._watch.forget_gradients()
        rows = slice(None) if only is None else slice(only, only + 1)
        with torch.enable_grad():
            total = loss(self._logits[rows], targets[rows]) * len(targets[rows])
        if not total.requires_grad:  # the logits depend on none of the parameters
            return {name: [] for name in self._leaves}, {}
        gradients = torch.autograd.grad(
            total, list(self._leaves.values()), retain_graph=again, allow_unused=True
        )
        uses: dict[str, list[Use]] = {}
        sums: Gradients = {}
        for name, gradient in zip(self._leaves, gradients, strict=True):
            own = self._watch.of(name)
            if gradient is None or gradient.numel() == 0:
                uses[name] = []
            else:
                sums[name] = gradient
                if own:
                    uses[name] = own
        return uses, sums


def _inference(inputs: Inputs) -> bool:
    """Return whether autograd is out of reach."""
    some = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    return torch.is_inference_mode_enabled() or any(value.is_inference() for value in some)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _gradients(uses: Sequence[Use], rows: slice, kind: torch.dtype) -> Tensor:
    """Return the gradients of some samples, (samples, *shape)."""
    found = uses[0].each(rows, kind)
    for use in uses[1:]:
        found = found + use.each(rows, kind)
    return found


def _agree(uses: Sequence[Use], expected: Tensor, samples: int, within: float) -> bool:
    """Return whether the uses give the gradients (2, *shape) of the first and the last sample."""
    if not uses:
        return not bool(expected.any())
    for row, wanted in zip((0, samples - 1), expected, strict=True):
        own = _gradients(uses, slice(row, row + 1), wanted.dtype)[0]
        if not _largest(wanted - own) <= within:
            return False
    return True
