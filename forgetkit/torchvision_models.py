"""Torchvision classifiers by name, and the name of one that is already built."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn

from forgetkit.errors import ModelError
from forgetkit.same_network import same_network

_PREFIX = "torchvision.models."
_SLOW_START = ("googlenet", "inception_v3")  # draw from a truncated normal for minutes


def builder_of(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds this architecture.

    Raises:
        ModelError: torchvision has no such classifier.
    """
    import torchvision  # slow; only when asked for

    try:
        builder: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    except ValueError as error:
        raise ModelError(
            f"source 'torchvision/{name}' is expected to name a torchvision model; found an "
            "unknown name. torchvision.models.list_models() has them all."
        ) from error
    return builder


def build(name: str, num_classes: int | None = None) -> nn.Module:
    """Build an architecture with fresh weights; ``None`` leaves the usual 1000 classes.

    Raises:
        ModelError: torchvision has no such classifier.
    """
    options: dict[str, object] = {} if num_classes is None else {"num_classes": num_classes}
    if name in _SLOW_START:
        options["init_weights"] = False
    return builder_of(name)(weights=None, **options)


def name_of(model: nn.Module) -> tuple[str, int] | None:
    """Return architecture and number of classes of an unaltered torchvision classifier.

    Every architecture of the same source file is laid out without memory and compared; ``None``
    when none or more than one is the same network.
    """
    home = type(model).__module__
    if not home.startswith(_PREFIX) or home not in sys.modules:
        return None
    import torchvision  # slow; only when asked for

    linear = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    convolution = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    names = torchvision.models.list_models(torchvision.models)
    candidates = [n for n in names if builder_of(n).__module__ == home and n not in _SLOW_START]
    for width in linear[-1:] or convolution[-1:]:
        fitting = [name for name in candidates if same_network(model, _laid_out(name, width))]
        if fitting:
            return (fitting[0], width) if len(fitting) == 1 else None
    return None


def _laid_out(name: str, num_classes: int) -> nn.Module:
    from accelerate import init_empty_weights

    # under torch.device("meta") RegNets could not compute their widths
    with init_empty_weights(), torch.random.fork_rng(devices=[]):
        return build(name, num_classes)
