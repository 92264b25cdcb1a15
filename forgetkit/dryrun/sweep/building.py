"""Building many models with random weights, fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LARGEST = 220_000_000
"""Parameters; larger models are checked by shapes on the meta device."""

_POOL = 1 << 20
_STEP = 7_919
_BIG = 10_000
_LAYER_SCALES = (
    "gamma", "gamma_1", "gamma_2", "gamma1", "gamma2", "gamma3", "lambda1", "lambda_1"
)  # fmt: skip
_RANDOM_FILLS = frozenset({"normal_", "uniform_", "erfinv_"})


class _NoRandomFill(TorchFunctionMode):
    """Skip the random initialisation of large weights; `cheap_weights` fills them afterwards."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        del types
        if getattr(func, "__name__", "") in _RANDOM_FILLS and args:
            tensor = args[0]
            if isinstance(tensor, Tensor) and tensor.dim() >= 2 and tensor.numel() > _BIG:
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def cheap_initialisation() -> Iterator[None]:
    """Make building a model cost little more than allocating it."""
    with _NoRandomFill():
        yield


def cheap_weights(model: nn.Module) -> None:
    """Fill weights from one pool of random numbers, scaled by fan-in, and scales with ones.

    Layer scales start near zero in many models and some heads at zero, which would make every
    logit the same for every input, and any head would pass.
    """
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(2 * _POOL, generator=generator)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            # the same numbers in every weight would make one direction drown all others
            numbers = pool[number * _STEP % _POOL :][: _POOL + 1]
            if parameter.dim() >= 2 and parameter.is_floating_point():
                fan_in = max(1, parameter[0].numel())
                flat = parameter.view(-1) if parameter.is_contiguous() else parameter.flatten()
                for part in flat.split(len(numbers)):
                    torch.div(numbers[: len(part)], math.sqrt(fan_in), out=part)
                parameter.copy_(flat.view(parameter.shape))
            elif name.endswith(_LAYER_SCALES):
                parameter.fill_(1.0)


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def recalibrate(model: nn.Module, run: Callable[[], object]) -> None:
    """Set batch-norm statistics from one forward, so that deep random networks stay in range."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - its public base
        and module.running_mean is not None
    ]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
        module.training = True
        if module.weight is not None:
            nn.init.ones_(module.weight)
    try:
        with torch.no_grad():
            run()
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
            module.training = False
