"""What the engine and the methods may ask of a model that was split into features and head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from forgetkit.types import Inputs


@dataclass(frozen=True)
class Affine:
    """One final affine operation, the last thing that multiplies features with learned weights.

    Args:
        name: dotted path of its module (or of its weight, when it is a bare function call).
        weight: the weight with one row a class along ``class_axis``; ``None`` when it is derived
            (weight norm, quantised weights).
        bias: (classes,) or ``None``.
        class_axis: axis of ``weight`` that counts the outputs.
        parameters: every trainable tensor of the operation, by dotted path in the model.
    """

    name: str
    weight: Tensor | None
    bias: Tensor | None
    class_axis: int
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True)
class RowRef:
    """The slice of one parameter that makes one logit.

    Args:
        name: dotted path of the parameter in the model.
        parameter: the live tensor.
        axis: the axis that is indexed.
        index: positions on that axis.
    """

    name: str
    parameter: Tensor
    axis: int
    index: tuple[int, ...]


@runtime_checkable
class ModelView(Protocol):
    """A model seen as ``head(features(x))``, which equals its logits in eval mode.

    The view holds references, never copies; it changes no flag, mode or autograd setting.
    """

    @property
    def model(self) -> nn.Module:
        """The model without wrappers; names refer to it."""
        ...

    @property
    def head_name(self) -> str:
        """Dotted path of the head; several are joined with ``+``."""
        ...

    @property
    def head_names(self) -> list[str]:
        """Dotted path of every final affine module."""
        ...

    @property
    def affines(self) -> list[Affine]:
        """The final affine operations with their live tensors."""
        ...

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        ...

    @property
    def feature_dim(self) -> int:
        """Width of what the head reads."""
        ...

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        ...

    @property
    def tail(self) -> list[str]:
        """What lies between the affine operations and the logits, for people."""
        ...

    @property
    def separable(self) -> bool:
        """Whether every logit depends on its own rows of the head only."""
        ...

    @property
    def linear(self) -> bool:
        """Whether logits are an affine function of the features."""
        ...

    @property
    def tied(self) -> list[str]:
        """Names of head parameters that other parts of the model use as well."""
        ...

    def features(self, inputs: Inputs) -> Tensor:
        """Return the input of the head, (batch, ...), by one forward of the user's model."""
        ...

    def head(self, features: Tensor) -> Tensor:
        """Return logits (batch, classes) from features, with the model's live weights."""
        ...

    def features_and_logits(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return both from one forward."""
        ...

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable tensors of the final affine operations by dotted path."""
        ...

    def rows(self, label: int) -> list[RowRef]:
        """Return the parameter slices that make the logit of class ``label`` and no other."""
        ...


LARGEST_PROBE = 65536
"""Widest feature, in numbers, for which the matrix of a composed affine head is formed."""


def effective_affine(view: ModelView) -> tuple[Tensor, Tensor] | None:
    """Return detached (weight, bias) with ``head(f) = flat(f) @ weight.T + bias``.

    A single linear layer answers with its own tensors. Any other head that is affine in its
    features (averaged heads, 1x1 convolutions, weight norm) is probed with a basis. ``None`` when
    the head is not affine in the features, or too wide to be probed.
    """
    if not view.linear:
        return None
    only = view.affines[0] if len(view.affines) == 1 else None
    plain = only is not None and not view.tail and only.class_axis == 0
    if plain and only is not None and only.weight is not None and only.weight.ndim == 2:
        weight = only.weight.detach()
        bias = only.bias.detach() if only.bias is not None else weight.new_zeros(len(weight))
        return weight, bias
    width = math.prod(view.feature_shape)
    if width > LARGEST_PROBE:
        return None
    like = next(iter(view.head_parameters().values()))
    with torch.no_grad():
        bias = view.head(like.new_zeros((1, *view.feature_shape)))[0]
        columns = [
            view.head(rows.reshape(-1, *view.feature_shape)) - bias
            for rows in torch.eye(width, device=like.device, dtype=like.dtype).split(4096)
        ]
    return torch.cat(columns).T.contiguous(), bias


class Adapter(Protocol):
    """What an ecosystem knows about its models; hints only, the dataflow decides.

    A package offers adapters through the entry point group ``forgetkit.adapters``: the entry
    names a module with a function ``adapters() -> list[Adapter]``.
    """

    @property
    def name(self) -> str:
        """The ecosystem, in one word."""
        ...

    def matches(self, model: nn.Module) -> bool:
        """Tell whether the model comes from this ecosystem."""
        ...

    def class_count(self, model: nn.Module) -> int | None:
        """Return how many classes the model says it has; 0 when it has no classifier."""
        ...

    def head_names(self, model: nn.Module) -> list[str]:
        """Return the dotted paths that the ecosystem calls the classifier."""
        ...

    def example(self, model: nn.Module, batch: int) -> Inputs | tuple[Tensor, ...] | None:
        """Return inputs that the model accepts, on its device and in its type, if known."""
        ...
