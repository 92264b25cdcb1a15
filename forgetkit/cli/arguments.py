"""Command line words turned into the values that the library takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from torch import nn

from forgetkit.errors import BadHyperparameter, BadTarget
from forgetkit.fields import Bounds, bounds_of
from forgetkit.method import find

ModelName: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A transformers or timm folder, torchvision/NAME, timm/NAME or "
        "package.module:factory.",
        show_default=False,
    ),
]
Weights: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="State dict for torchvision/NAME, timm/NAME or a factory: .safetensors, .pt, .pth."
    ),
]
NumClasses: TypeAlias = Annotated[
    int | None, typer.Option(help="Classes of a torchvision or timm architecture.", min=2)
]
Download: TypeAlias = Annotated[
    bool, typer.Option("--download", help="Allow fetching weights that are not on this machine.")
]
HeadName: TypeAlias = Annotated[
    str | None, typer.Option(help="Dotted path of the head, when detection must be overruled.")
]
Output: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Key or index of the logits, when the model returns several tensors."),
]


def parse_output(word: str | None) -> str | int | None:
    """Return a key, or the index that a number is."""
    return None if word is None else _number_or_word(word)


def parse_classes(words: Sequence[str]) -> list[int | str]:
    """Split ``3,5`` and repeated options into class numbers and names.

    Raises:
        BadTarget: nothing is left.
    """
    parts = [part.strip() for word in words for part in word.split(",") if part.strip()]
    if not parts:
        raise BadTarget(
            "--classes: expected class numbers or names, found nothing; write --classes 3 or "
            "--classes cat,dog"
        )
    return [_number_or_word(part) for part in parts]


def _number_or_word(word: str) -> int | str:
    return int(word) if word.removeprefix("-").isdecimal() else word


_ALLOWED = Bounds("number", "how long the run may take", low=0.0)


def parse_settings(method: str, words: Sequence[str]) -> dict[str, object]:
    """Read ``NAME=VALUE`` words as hyper-parameters of a method, or as what ``auto`` chooses by.

    Raises:
        BadHyperparameter: a word has another form, or its value cannot be read.
        UnknownMethod: no method has this name.
    """
    if not words:
        return {}
    declared = (
        {"seconds": _ALLOWED}
        if method == "auto"
        else {entry.name: bounds_of(entry) for entry in dataclasses.fields(find(method))}
    )
    settings: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise BadHyperparameter(
                f"--set {word}: expected NAME=VALUE, found {word!r}; for instance "
                f"--set {next(iter(declared), 'name')}=..."
            )
        # An unknown name goes through: using() has the message with the nearest names.
        settings[name] = _read(declared[name], word, text) if name in declared else text
    return settings


def _read(bounds: Bounds, word: str, text: str) -> object:
    if text.lower() == "none":
        return None
    if bounds.by_layer and "=" in text:  # LAYER=VALUE,LAYER=VALUE
        one = dataclasses.replace(bounds, by_layer=False)
        parts = [part.partition("=") for part in text.split(",")]
        return {layer: _read(one, word, value) for layer, _, value in parts}
    try:
        if bounds.kind == "integer":
            return int(text)
        if bounds.kind == "number":
            return float(text)
        if bounds.kind == "positions":
            return tuple(int(position) for position in text.split(",") if position)
        if bounds.kind == "interval":
            low, high = (end.split(":") for end in text.split(","))
            ends = tuple(map(float, low)), tuple(map(float, high))
            alone = len(low) == len(high) == 1
            return (ends[0][0], ends[1][0]) if alone else ends  # LOW:LOW:LOW,HIGH:HIGH:HIGH
    except ValueError:
        raise BadHyperparameter(
            f"--set {word}: expected {bounds.describe()}, found {text!r}; it is {bounds.about}"
        ) from None
    if bounds.kind == "flag":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    return text


def model_folder(name: str) -> Path | None:
    """Return the folder that a model name means, if it means one."""
    return Path(name) if Path(name).is_dir() else None


def label_names(model: nn.Module) -> dict[int, str]:
    """Return a transformers model's class names by label; empty when it has only placeholders."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict):
        return {}
    found = {int(label): str(name) for label, name in names.items()}
    return {} if all(name.startswith("LABEL_") for name in found.values()) else found
