"""Hints for timm's models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetkit.types import Inputs


@dataclass(frozen=True)
class TimmAdapter:
    """Reads the pretrained configuration that timm keeps on its models."""

    name: str = "timm"

    def matches(self, model: nn.Module) -> bool:
        """Tell whether a class of the model comes from timm."""
        return any(kind.__module__.startswith("timm.") for kind in type(model).__mro__)

    def class_count(self, model: nn.Module) -> int | None:
        """Read ``num_classes``; 0 marks an encoder."""
        count = getattr(model, "num_classes", None)
        return count if isinstance(count, int) else None

    def head_names(self, model: nn.Module) -> list[str]:
        """Read ``pretrained_cfg["classifier"]``, right for all but a handful of models."""
        config = getattr(model, "pretrained_cfg", None) or {}
        named = config.get("classifier")
        names = [named] if isinstance(named, str) else list(named or ())
        known = {name for name, _ in model.named_modules()}
        return [name for name in names if name in known]

    def example(self, model: nn.Module, batch: int) -> Inputs | tuple[Tensor, ...] | None:
        """Draw pictures of the configured size and number of channels."""
        config = getattr(model, "pretrained_cfg", None) or {}
        channels, height, width = config.get("input_size", (3, 224, 224))
        stem = next((item for item in model.modules() if isinstance(item, nn.Conv2d)), None)
        weight = next(model.parameters())
        if stem is not None and stem.groups == 1:
            channels = getattr(model, "in_chans", None) or channels
        return torch.randn(batch, channels, height, width, device=weight.device, dtype=weight.dtype)


ADAPTER = TimmAdapter()
