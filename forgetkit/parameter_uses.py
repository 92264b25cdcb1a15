"""How the parameters of a model are used while a batch goes forward, seen where it happens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode

from forgetkit.convolution_cuts import Cut, cut_of


class Call:
    """An operation on a batch, and what came back for its output.

    Args:
        samples: of the batch; along the first axis each has one row or several.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.gradient: Tensor | None = None

    def note(self, gradient: Tensor) -> None:
        """Keep what comes back for the output."""
        self.gradient = gradient

    def part(self, values: Tensor, rows: slice, kind: torch.dtype) -> Tensor:
        """Return what belongs to some samples, (samples, rows of each, *)."""
        own: Tensor = values.unflatten(0, (self.samples, -1))[rows]
        return own.to(kind)

    def reaches_others(self, row: int) -> bool:
        """Return whether something came back for another sample than this one."""
        if self.gradient is None:
            return False
        reached = self.gradient.unflatten(0, (self.samples, -1)).flatten(1).any(dim=1)
        reached[row] = False
        return bool(reached.any())

    def back(self, rows: slice, kind: torch.dtype) -> Tensor:
        """Return what came back for some samples.

        Raises:
            RuntimeError: nothing came back yet.
        """
        if self.gradient is None:
            raise RuntimeError("expected a backward pass after this call, found none")
        return self.part(self.gradient, rows, kind)


@dataclass(frozen=True)
class Use(ABC):
    """One use of a parameter.

    Args:
        call: the operation.
        shape: of the parameter.
    """

    call: Call
    shape: torch.Size

    @abstractmethod
    def each(self, rows: slice, kind: torch.dtype) -> Tensor:
        """Return what the use adds to the gradients of some samples, (samples, *shape)."""

    def factors(self, kind: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Return (samples, rows) and (samples, columns) whose outer products the gradients are."""
        del kind
        return None


@dataclass(frozen=True)
class OfLinear(Use):
    """The weight (rows, columns) of a linear map.

    Args:
        inputs: (batch, *, columns).
    """

    inputs: Tensor

    def each(self, rows: slice, kind: torch.dtype) -> Tensor:  # noqa: D102
        outward = self.call.back(rows, kind).flatten(1, -2)
        return outward.mT @ self.call.part(self.inputs, rows, kind).flatten(1, -2)

    def factors(self, kind: torch.dtype) -> tuple[Tensor, Tensor] | None:  # noqa: D102  as of Use
        if self.inputs.numel() != self.call.samples * self.shape[1]:
            return None
        every = slice(None)
        outward, inward = self.call.back(every, kind), self.call.part(self.inputs, every, kind)
        return outward.flatten(1), inward.flatten(1)


@dataclass(frozen=True)
class OfConvolution(Use):
    """The weight (channels out, channels in of a group, height, width) of a convolution.

    Args:
        inputs: (batch, channels, height, width).
        cut: how it cuts patches.
    """

    inputs: Tensor
    cut: Cut

    def _patches(self, rows: slice, kind: torch.dtype) -> Tensor:
        own = self.call.part(self.inputs, rows, kind)
        return rearrange(
            self.cut.views(own.flatten(0, 1)), "(n k) (g c) d a h w -> n g (k d a) (c h w)",
            n=len(own), g=self.cut.groups,
        )  # fmt: skip

    def _outward(self, rows: slice, kind: torch.dtype) -> Tensor:
        back = self.call.back(rows, kind)
        return rearrange(back, "n k (g o) d a -> n g o (k d a)", g=self.cut.groups)

    def each(self, rows: slice, kind: torch.dtype) -> Tensor:  # noqa: D102  as of Use
        down, across = self.cut.places(self.inputs)
        if 2 * down * across >= self.shape[0]:  # cutting that many patches takes longer
            return self._convolved(rows, kind)
        found = self._outward(rows, kind) @ self._patches(rows, kind)
        return found.reshape(-1, *self.shape)

    def _convolved(self, rows: slice, kind: torch.dtype) -> Tensor:
        """Return the gradients by one convolution with a group for each image."""
        back = self.call.back(rows, kind)
        samples, images = back.shape[:2]
        inward = self.call.part(self.inputs, rows, kind).flatten(0, 2)
        found: Tensor = conv2d_weight(
            functional.pad(inward, self.cut.padding)[None],
            (samples * images * self.shape[0], *self.shape[1:]),
            back.flatten(0, 2)[None],
            stride=self.cut.stride,
            dilation=self.cut.dilation,
            groups=samples * images * self.cut.groups,
        )
        return found.reshape(samples, images, *self.shape).sum(dim=1)

    def factors(self, kind: torch.dtype) -> tuple[Tensor, Tensor] | None:  # noqa: D102  as of Use
        down, across = self.cut.places(self.inputs)
        if self.cut.groups > 1 or len(self.inputs) * down * across != self.call.samples:
            return None
        every = slice(None)
        return self._outward(every, kind).flatten(1), self._patches(every, kind).flatten(1)


@dataclass(frozen=True)
class ByEntry(Use):
    """A parameter that meets the batch entry by entry, broadcast over the other axes.

    Args:
        inputs: what it is multiplied with, or what that is computed from; ``None`` where it is
            added.
        change: rows of ``inputs`` to what it is multiplied with.
        channels: whether it lies along the second axis instead of the last ones.
    """

    inputs: Tensor | None = None
    change: Callable[[Tensor], Tensor] | None = None
    channels: bool = False

    def each(self, rows: slice, kind: torch.dtype) -> Tensor:  # noqa: D102  as of Use
        found = self.call.back(rows, kind)
        if self.inputs is not None:
            own = self.call.part(self.inputs, rows, kind)
            if self.change is not None:
                own = self.change(own.flatten(0, 1)).unflatten(0, own.shape[:2])
            found = found * own
        if self.channels:
            found = found.movedim(2, -1)
        found = found.sum(dim=1)
        shape = self.shape[-(found.ndim - 1) :] if found.ndim > 1 else torch.Size()
        others = [1] * (found.ndim - 1 - len(shape))
        return found.sum_to_size(len(found), *others, *shape).reshape(-1, *self.shape)


class Watch(TorchFunctionMode):
    """Notes the uses of parameters inside the block.

    Args:
        parameters: that require gradients, by name.
        samples: of the batch that goes forward.
    """

    def __init__(self, parameters: Mapping[str, Tensor], samples: int) -> None:
        super().__init__()
        self._names = {id(leaf): name for name, leaf in parameters.items()}
        self._samples = samples
        self._uses: dict[str, list[Use]] = {name: [] for name in parameters}

    def of(self, name: str) -> list[Use]:
        """Return the uses of a parameter for whose outputs something came back."""
        return [use for use in self._uses[name] if use.call.gradient is not None]

    def forget_gradients(self) -> None:
        """Forget what came back, before another backward pass."""
        for use in (use for own in self._uses.values() for use in own):
            use.call.gradient = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        output = func(*args, **named)
        if isinstance(output, Tensor) and output.requires_grad and output.ndim > 0:
            call = Call(self._samples)
            found = list(self._found(func, args, named, output, call))
            for leaf, use in found:
                self._uses[self._names[id(leaf)]].append(use)
            if found:  # set now, the hook sees the output as it is before it is changed in place
                output.register_hook(call.note)
        return output

    def _found(
        self,
        func: object,
        args: tuple[object, ...],
        named: Mapping[str, object],
        output: Tensor,
        call: Call,
    ) -> Told:
        """Yield the parameters that an operation uses, and how."""
        told = _OPERATIONS.get(func)
        if told is None or len(output) == 0 or len(output) % self._samples:
            return
        for leaf, use in told(call, output, *args, **named):
            if id(leaf) in self._names:
                yield leaf, use


Told: TypeAlias = Iterator[tuple[Tensor | None, Use]]
"""Parameters of an operation and how it uses them."""


def _linear(
    call: Call, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Told:
    if input.ndim > 1:
        yield weight, OfLinear(call, weight.shape, input.detach())
        yield from _added(call, output, bias)


def _convolved(
    call: Call,
    output: Tensor,  # noqa: ARG001  of the common form
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: object,
    **named: object,
) -> Told:
    if input.ndim == 4:  # with a batch
        cut = cut_of(weight, (input, weight, bias, *args), named)
        yield weight, OfConvolution(call, weight.shape, input.detach(), cut)
        if bias is not None:
            yield bias, ByEntry(call, bias.shape, channels=True)


def _scaled(
    call: Call,
    input: Tensor,
    change: Callable[[Tensor], Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    channels: bool,
) -> Told:
    if weight is not None:
        yield weight, ByEntry(call, weight.shape, input.detach(), change, channels)
    if bias is not None:
        yield bias, ByEntry(call, bias.shape, channels=channels)


def _batch_normed(
    call: Call,
    output: Tensor,  # noqa: ARG001
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Told:
    if not training and running_mean is not None and running_var is not None:
        change = partial(_standard, mean=running_mean, variance=running_var, eps=eps)
        yield from _scaled(call, input, change, weight, bias, channels=True)


def _standard(values: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    shape = (1, -1, *[1] * (values.ndim - 2))
    scale = (variance.to(values) + eps).rsqrt()
    return (values - mean.to(values).view(shape)) * scale.view(shape)


def _group_normed(
    call: Call,
    output: Tensor,  # noqa: ARG001
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Told:
    change = partial(functional.group_norm, num_groups=num_groups, eps=eps)
    yield from _scaled(call, input, change, weight, bias, channels=True)


def _layer_normed(
    call: Call,
    output: Tensor,  # noqa: ARG001
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Told:
    change = partial(functional.layer_norm, normalized_shape=normalized_shape, eps=eps)
    yield from _scaled(call, input, change, weight, bias, channels=False)


def _added(call: Call, output: Tensor, *terms: object, **named: object) -> Told:
    for term in () if named else terms:
        if isinstance(term, Tensor) and _is_broadcast(term, output):
            yield term, ByEntry(call, term.shape)


def _multiplied(call: Call, output: Tensor, *pair: object, **named: object) -> Told:
    for leaf, factor in () if named else (pair, pair[::-1]):
        if not isinstance(leaf, Tensor) or not isinstance(factor, Tensor):
            continue
        if _is_broadcast(leaf, output):
            yield leaf, ByEntry(call, leaf.shape, factor.detach().broadcast_to(output.shape))


def _expanded(call: Call, output: Tensor, one: Tensor, *sizes: object, **named: object) -> Told:
    del sizes, named
    yield from _added(call, output, one)


def _is_broadcast(term: Tensor, output: Tensor) -> bool:
    """Return whether all samples meet the same entries."""
    return term.ndim < output.ndim or len(term) == 1


_OPERATIONS: dict[object, Callable[..., Told]] = {
    functional.linear: _linear,
    torch.conv2d: _convolved,
    functional.batch_norm: _batch_normed,
    functional.group_norm: _group_normed,
    functional.layer_norm: _layer_normed,
    torch.Tensor.add: _added,
    torch.add: _added,
    torch.Tensor.mul: _multiplied,
    torch.mul: _multiplied,
    torch.Tensor.expand: _expanded,
}
