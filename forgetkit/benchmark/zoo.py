"""The two small architectures of the built-in benchmark."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

MODEL_NAMES = ("resnet18", "vit")


def build_resnet18(num_classes: int) -> nn.Module:
    """Build timm's ``resnet18`` for one-channel images, with random weights (11 M parameters)."""
    import timm

    return timm.create_model("resnet18", in_chans=1, num_classes=num_classes)


def build_vit(num_classes: int) -> nn.Module:
    """Build a transformers ViT of 1.0 M parameters for 32-pixel images, with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(  # type: ignore[call-arg]  # num_labels is an attribute of every config
        image_size=32,
        patch_size=8,
        num_channels=1,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=384,
        num_labels=num_classes,
    )
    return ViTForImageClassification(config)


BUILDERS: dict[str, Callable[[int], nn.Module]] = {"resnet18": build_resnet18, "vit": build_vit}
