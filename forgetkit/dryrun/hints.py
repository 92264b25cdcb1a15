"""What ecosystems say about their models: class counts, head names, example inputs.

Hints only reject early, break ties and word errors; the dataflow decides.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from torch import nn

from forgetkit.dryrun.examples import Example
from forgetkit.errors import ModelError
from forgetkit.view import Adapter

GROUP = "forgetkit.adapters"
_CLASSIFIERS = ("fc", "classifier", "head", "heads", "score")


def unwrap(model: nn.Module) -> nn.Module:
    """Take off ``torch.compile``, DataParallel and DistributedDataParallel, however nested.

    Raises:
        ModelError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model should be a torch.nn.Module, found {type(model).__name__}; build or load the "
            "model first, for instance with forgetkit.load_model(...)."
        )
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def find_adapter(model: nn.Module) -> Adapter:
    """Return the first adapter that knows ``model``.

    Raises:
        ModelError: when no adapter is installed that takes plain modules.
    """
    for package in _packages():
        for adapter in package():
            if adapter.matches(model):
                return adapter
    raise ModelError(
        "an adapter for plain modules should be installed with forgetkit, but none was found in "
        f"the entry point group {GROUP!r}; reinstall forgetkit."
    )


def class_count_hint(model: nn.Module) -> int | None:
    """Return how many classes the model says it has, or ``None`` when it does not say."""
    bare = unwrap(model)
    return find_adapter(bare).class_count(bare)


def head_name_hints(model: nn.Module) -> list[str]:
    """Return the dotted paths that the model's ecosystem calls its classifier."""
    bare = unwrap(model)
    return find_adapter(bare).head_names(bare)


def example_inputs(model: nn.Module, batch: int = 1) -> Example | None:
    """Return random inputs that the model should accept, or ``None`` when that is not known.

    Args:
        model: the model; its device and floating-point type are taken over.
        batch: number of samples.
    """
    bare = unwrap(model)
    return find_adapter(bare).example(bare, batch)


def has_identity_classifier(model: nn.Module) -> bool:
    """Tell whether everything at the usual classifier names is an Identity."""
    held = [getattr(model, name, None) for name in _CLASSIFIERS]
    present = [module for module in held if isinstance(module, nn.Module)]
    return bool(present) and all(isinstance(module, nn.Identity) for module in present)


def has_classifier(model: nn.Module) -> bool:
    """Tell whether a layer with weights stands where the model's classifier is.

    Whoever puts one on an encoder that was built without leaves its class count at 0.
    """
    named = head_name_hints(model)
    if not named:
        named = [n for n in _CLASSIFIERS if isinstance(getattr(model, n, None), nn.Module)]
    return any(p.ndim > 1 for name in named for p in model.get_submodule(name).parameters())


@cache
def _loaders() -> tuple[object, ...]:
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name == "builtin")
    packages: list[object] = [point.load() for point in points]
    # A checkout that is on the path without being installed has no entry points.
    if not any(point.name == "builtin" for point in points):
        packages.append(importlib.import_module("forgetkit_adapters"))
    return tuple(packages)


class _Package:
    def __init__(self, module: object) -> None:
        self._module = module

    def __call__(self) -> list[Adapter]:
        return list(self._module.adapters())  # type: ignore[attr-defined]


def _packages() -> list[_Package]:
    return [_Package(module) for module in _loaders()]
