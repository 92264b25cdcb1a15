"""The two models of the demo and how each is trained from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from forgetkit.benchmark.datasets import IMAGE_SIZE, Pair
from forgetkit.benchmark.train import TrainRecipe


@dataclass(frozen=True)
class Contender:
    """One model of the demo.

    Args:
        slug: name of its folder.
        title: name in the table.
        build: returns it with random weights, for the classes and normalisation of a data set.
        recipes: how it is trained, by data set name.
    """

    slug: str
    title: str
    build: Callable[[Pair], nn.Module]
    recipes: Mapping[str, TrainRecipe]


def build_resnet(data: Pair) -> nn.Module:
    """Build timm's ``resnet10t`` for one-channel images (4.9 M parameters)."""
    import timm

    model = timm.create_model(
        "resnet10t",
        in_chans=1,
        num_classes=data.num_classes,
        pretrained_cfg_overlay={
            "input_size": (1, IMAGE_SIZE, IMAGE_SIZE),
            "mean": (data.mean,),
            "std": (data.std,),
            "crop_pct": 1.0,
        },
    )
    if not isinstance(model, nn.Module):
        raise TypeError(f"timm.create_model returned {type(model).__name__}")
    return model


def build_vit(data: Pair) -> nn.Module:
    """Build a transformers ViT for one-channel images (0.28 M parameters)."""
    from transformers import ViTConfig, ViTForImageClassification

    names = dict(enumerate(data.train.classes))
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=8,
        num_channels=1,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    return ViTForImageClassification(config)


def describe_input(folder: Path, data: Pair) -> None:
    """Write the image processor settings that a transformers folder needs beside its weights."""
    settings = {
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [data.mean],
        "image_std": [data.std],
        "image_processor_type": "ViTImageProcessor",
    }
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


CONTENDERS = (
    Contender(
        slug="resnet",
        title="timm ResNet-10-T",
        build=build_resnet,
        recipes={
            "digits": TrainRecipe(
                epochs=4, lr=0.1, optimizer="sgd", weight_decay=5e-4, batch_size=64, shift=1,
                flip=False,
            ),
            "fashion-mnist": TrainRecipe(
                epochs=3, lr=0.1, optimizer="sgd", weight_decay=5e-4, shift=1
            ),
        },
    ),
    Contender(
        slug="vit",
        title="transformers ViT",
        build=build_vit,
        recipes={
            "digits": TrainRecipe(
                epochs=20, lr=2e-3, optimizer="adamw", weight_decay=0.05, batch_size=32, shift=0,
                flip=False,
            ),
            "fashion-mnist": TrainRecipe(
                epochs=8, lr=2e-3, optimizer="adamw", weight_decay=0.05, shift=1
            ),
        },
    ),
)  # fmt: skip
