"""Small models of every ecosystem, built from configurations, with weights that all differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from forgetkit.fingerprint import fingerprint, model_tensors

if TYPE_CHECKING:
    from transformers import ViTForImageClassification


M = TypeVar("M", bound=nn.Module)


def spread(model: M) -> M:
    """Give every floating tensor distinct values, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model_tensors(model).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator).abs() * 0.05 + 0.01)
    model.eval()
    return model


def vit(num_labels: int = 5) -> ViTForImageClassification:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            id2label={label: f"class {label}" for label in range(num_labels)},
        )
    )
    spread(model)
    return model


def timm_vit() -> nn.Module:
    import timm

    return spread(timm.create_model("test_vit", num_classes=7, img_size=32, in_chans=1))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same tensors under the same names."""
    return fingerprint(model_tensors(one)) == fingerprint(model_tensors(other))


class Tied(nn.Module):
    """A model of nobody's library, with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


def build_tied() -> nn.Module:
    """Return the factory's model."""
    return spread(Tied())
