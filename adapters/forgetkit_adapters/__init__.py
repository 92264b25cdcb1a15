"""What forgetkit knows about timm, transformers, torchvision and plain modules.

An adapter is loaded only when its ecosystem was imported: a model of it could not exist otherwise.
"""

from __future__ import annotations

import importlib
import sys

from forgetkit.view import Adapter

_ECOSYSTEMS = {
    "timm": "timm",
    "transformers": "transformers",
    "torchvision": "torchvision.models",
}


def adapters() -> list[Adapter]:
    """Return the adapters of the imported ecosystems; the one for plain modules comes last."""
    names = [name for name, needed in _ECOSYSTEMS.items() if needed in sys.modules]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in (*names, "plain")]
    return [module.ADAPTER for module in modules]
