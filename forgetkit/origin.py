"""Where a model was loaded from, remembered beside it rather than on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from weakref import WeakKeyDictionary

from torch import nn

Form: TypeAlias = Literal["transformers", "timm", "peft", "torchvision", "factory"]


@dataclass(frozen=True)
class Origin:
    """Where a model came from, so that it can be saved in the same form.

    Args:
        form: what can load it.
        source: what was passed to ``load_model``.
        name: architecture for timm and torchvision, ``package.module:factory`` for a factory.
        folder: local folder it was read from, if any.
        num_classes: what the architecture was built with, if it was stated.
    """

    form: Form
    source: str
    name: str = ""
    folder: Path | None = None
    num_classes: int | None = None


_ORIGINS: WeakKeyDictionary[nn.Module, Origin] = WeakKeyDictionary()


def remember(model: nn.Module, origin: Origin) -> None:
    """Note where a model came from, for as long as it lives."""
    _ORIGINS[model] = origin


def origin_of(model: nn.Module) -> Origin | None:
    """Return where ``load_model`` got this model from; ``None`` for any other model."""
    return _ORIGINS.get(model)
