"""What the engine and the methods may ask of a model that was split into features and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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

    model: nn.Module
    head_name: str
    head_names: list[str]
    affines: list[Affine]
    num_classes: int
    feature_dim: int
    feature_shape: tuple[int, ...]
    tail: list[str]
    separable: bool
    linear: bool
    tied: list[str]

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
