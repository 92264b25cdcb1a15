"""Hints for torchvision's classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetkit.types import Inputs

_NAMES = ("fc", "classifier", "head", "heads")
_SIDES = {"Inception3": 299, "QuantizableInception3": 299}


@dataclass(frozen=True)
class TorchvisionAdapter:
    """Knows attribute names and input sizes; torchvision models carry no configuration."""

    name: str = "torchvision"

    def matches(self, model: nn.Module) -> bool:
        """Tell whether a class of the model comes from torchvision."""
        return any(kind.__module__.startswith("torchvision.models") for kind in type(model).__mro__)

    def class_count(self, model: nn.Module) -> int | None:
        """Read ``num_classes`` where the model keeps it."""
        count = getattr(model, "num_classes", None)
        return count if isinstance(count, int) else None

    def head_names(self, model: nn.Module) -> list[str]:
        """Return the classifier attributes that the model has."""
        return [name for name in _NAMES if isinstance(getattr(model, name, None), nn.Module)]

    def example(self, model: nn.Module, batch: int) -> Inputs | tuple[Tensor, ...] | None:
        """Draw pictures of the size that the architecture is trained on."""
        side = getattr(model, "image_size", None) or _SIDES.get(type(model).__name__, 224)
        weight = next(iter(model.parameters()), torch.empty(0))
        channels = next(
            (item.in_channels for item in model.modules() if isinstance(item, nn.Conv2d)), 3
        )
        return torch.randn(batch, channels, side, side, device=weight.device, dtype=weight.dtype)


ADAPTER = TorchvisionAdapter()
