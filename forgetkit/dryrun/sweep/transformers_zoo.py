"""All image classifiers of transformers, in small configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from forgetkit.dryrun.examples import Example
from forgetkit.dryrun.sweep.checking import Outcome, check, pictures

Options: TypeAlias = "dict[str, object]"

_WIDTHS: Mapping[str, object] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "patch_size": 8,
    "num_labels": 10,
}
_TOWER: Options = {key: value for key, value in _WIDTHS.items() if key != "num_labels"}
_SPECIAL: dict[str, Options] = {
    "bit": {"embedding_size": 32, "hidden_sizes": [64, 64, 64, 128], "num_groups": 8,
            "depths": [1, 1, 1, 1]},
    "convnext": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "cvt": {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3],
            "drop_path_rate": [0.0, 0.0, 0.0]},
    "donut-swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 4},
    "efficientnet": {"width_coefficient": 0.3, "depth_coefficient": 0.2, "hidden_dim": 384},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1], "patch_size": 4},
    "hiera": {
        "embed_dim": 16, "image_size": [64, 64], "patch_size": [7, 7], "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "imagegpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 33},
    "mobilevit": {"hidden_sizes": [32, 40, 48],
                  "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 64],
                  "patch_size": 2},
    "poolformer": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "patch_size": 7},
    "pvt": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "patch_sizes": [4, 2, 2, 2],
            "image_size": 64, "num_attention_heads": [1, 2, 2, 4]},
    "pvt_v2": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
               "patch_sizes": [7, 3, 3, 3],
               "num_attention_heads": [1, 2, 2, 4]},
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1],
               "groups_width": 8},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]},
    "segformer": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
                  "num_attention_heads": [1, 2, 2, 4]},
    "swiftformer": {"embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 4},
    "levit": {"hidden_sizes": [16, 32, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8], "patch_size": 16},
    "clip": {"vision_config": _TOWER, "text_config": {"hidden_size": 32}},
    "metaclip_2": {"vision_config": _TOWER, "text_config": {"hidden_size": 32}},
    "siglip": {"vision_config": _TOWER, "text_config": {"hidden_size": 32}},
    "siglip2": {"vision_config": {**_TOWER, "num_patches": 64}, "text_config": {"hidden_size": 32}},
    "timm_wrapper": {"architecture": "resnet18", "do_pooling": True},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_blocks": 1,
                  "num_self_attends_per_block": 1,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": 224},
}  # fmt: skip
_SIDE = {
    "perceiver": 224,
    "mobilevitv2": 256,
    "timm_wrapper": 96,
    "hiera": 64,
    "mobilenet_v1": 96,
    "levit": 224,
}
_OWN_SIZES = frozenset(_SPECIAL) - {"hiera"}


def names() -> list[str]:
    """Return ``type:class`` of every image classifier of the installed transformers."""
    from transformers.models.auto import modeling_auto

    table = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    found = []
    for kind, classes in table.items():
        listed = (classes,) if isinstance(classes, str) else classes
        found += [f"{kind}:{name}" for name in listed]
    return found


def outcomes(wanted: list[str]) -> Iterator[Outcome]:
    """Build, split and check each model in turn."""
    for name in wanted:
        yield one(name)


def one(name: str) -> Outcome:
    """Build, split and check one model."""
    kind, _, class_name = name.partition(":")
    try:
        model = build(kind, class_name).eval()
        example, fresh = inputs(kind, model, 1), inputs(kind, model, 2)
    except Exception as error:
        return Outcome(name, "not-run", detail=f"{type(error).__name__}: {error}"[:300])
    return check(name, model, example, fresh, note="small configuration")


def build(kind: str, class_name: str) -> nn.Module:
    """Build a small model of one type; the same weights at each call."""
    import transformers

    if kind == "shieldgemma2":
        config = _shieldgemma()
    else:
        known = transformers.AutoConfig.for_model(kind)
        options: Options = {"num_labels": 10, **_fitting(kind, known)}
        options.update(_SPECIAL.get(kind, {}))
        if kind == "perceiver" and class_name.endswith("Learned"):
            options["image_size"] = 32
        configure: Callable[..., object] = type(known)
        config = configure(**options)
    torch.manual_seed(0)
    module = getattr(transformers, class_name)(config)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{class_name} is no module")
    return module


def inputs(kind: str, model: nn.Module, rows: int) -> Example:
    """Return random inputs of the kind that the model takes."""
    special: dict[str, Callable[[nn.Module, int], Example]] = {
        "imagegpt": _pixel_ids,
        "siglip2": _patches,
        "shieldgemma2": _prompt,
        "perceiver": _perceiver_picture,
    }
    if kind in special:
        return special[kind](model, rows)
    side = _SIDE.get(kind, 64)
    return {"pixel_values": pictures(rows, 3, (side, side))}


def _fitting(kind: str, config: object) -> Options:
    """Keep the small widths that this type of configuration knows as single numbers."""
    if kind in _OWN_SIZES:
        return {}
    return {
        key: value
        for key, value in _WIDTHS.items()
        if isinstance(getattr(config, key, None), int) and not isinstance(value, list)
    }


def _ids(rows: int, length: int, top: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, top, (rows, length), generator=generator)


def _pixel_ids(model: nn.Module, rows: int) -> Example:
    del model
    return {"input_ids": _ids(rows, 36, 32)}


def _patches(model: nn.Module, rows: int) -> Example:
    del model
    patches = pictures(rows, 64, (1, 192)).squeeze(2)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(rows, 64, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[8, 8]] * rows),
    }


def _perceiver_picture(model: nn.Module, rows: int) -> Example:
    side = 32 if type(model).__name__.endswith("Learned") else 224
    return {"inputs": pictures(rows, 3, (side, side))}


def _shieldgemma() -> object:
    import transformers

    vision = {**_TOWER, "image_size": 32, "vision_use_head": False}
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    }  # fmt: skip
    configure: Callable[..., object] = transformers.ShieldGemma2Config
    return configure(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
        yes_token_index=5,
        no_token_index=7,
    )


def _prompt(model: nn.Module, rows: int) -> Example:
    del model
    words = _ids(rows, 6, 50)
    picture = torch.full((rows, 4), 60)
    return {
        "input_ids": torch.cat([words[:, :2], picture, words[:, 2:]], dim=1),
        "attention_mask": torch.ones(rows, 10, dtype=torch.int64),
        "pixel_values": pictures(rows, 3, (32, 32)),
    }
