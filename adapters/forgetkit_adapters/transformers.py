"""Hints for the image classifiers of transformers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetkit.types import Inputs

_NAMES = (
    "classifier",
    "score",
    "fc",
    "head",
    "cls_classifier",
    "distillation_classifier",
    "dist_head",
)


@dataclass(frozen=True)
class TransformersAdapter:
    """Reads the configuration that transformers keeps on its models."""

    name: str = "transformers"

    def matches(self, model: nn.Module) -> bool:
        """Tell whether the model is a transformers model."""
        from transformers import PreTrainedModel

        return isinstance(model, PreTrainedModel)

    def class_count(self, model: nn.Module) -> int | None:
        """Read ``config.num_labels``; 0 marks a model without a classifier."""
        count = getattr(getattr(model, "config", None), "num_labels", None)
        return count if isinstance(count, int) else None

    def head_names(self, model: nn.Module) -> list[str]:
        """Return the classifier attributes that the model has."""
        return [name for name in _NAMES if isinstance(getattr(model, name, None), nn.Module)]

    def example(self, model: nn.Module, batch: int) -> Inputs | tuple[Tensor, ...] | None:
        """Draw pixel values of the configured size; models that take other inputs give ``None``."""
        if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
            return None
        config = getattr(model, "config", None)
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(config, "num_channels", None) or 3
        weight = next(model.parameters())
        shape = (batch, channels, height, width)
        return {"pixel_values": torch.randn(shape, device=weight.device, dtype=weight.dtype)}


ADAPTER = TransformersAdapter()
