"""A pytest plugin: toy models lie on a simulated accelerator, and the contract runs there.

    FORGETKIT_TEST_DEVICE=sim PYTHONPATH=tests/simulated_device \
      python -m pytest -p simulated_device tests/contract

Needs a C++ compiler and ninja. The first start compiles ``device.cpp``, which takes a minute.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from pathlib import Path

import torch
from torch import nn
from torch.utils import cpp_extension

from forgetkit.testing import toys


def device_module() -> types.ModuleType:
    """Return what torch asks a kind of device for: one device without random state of its own."""
    module = types.ModuleType("torch.sim")
    answers = {
        "is_available": True,
        "is_initialized": True,
        "_is_in_bad_fork": False,
        "device_count": 1,
        "current_device": 0,
        "get_rng_state": torch.zeros(1, dtype=torch.uint8),
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }
    for name in ("manual_seed", "manual_seed_all", "set_rng_state", "set_device", "synchronize"):
        setattr(module, name, lambda *_, **__: None)
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    module.device = lambda _: contextlib.nullcontext()  # type: ignore[attr-defined]
    return module


def register() -> None:
    """Let torch know the device "sim"."""
    torch.utils.rename_privateuse1_backend("sim")
    source = Path(__file__).with_name("device.cpp")
    cpp_extension.load("simulated_device_kernels", [str(source)]).register_hooks()
    torch._register_device_module("sim", device_module())
    torch.utils.generate_methods_for_privateuse1_backend()


def on_device(kind: str) -> nn.Module:
    """Return a copy of the trained toy that lies on the device."""
    return copy.deepcopy(TRAINED(kind)).to("sim")


register()
TRAINED = toys._trained
toys._trained = functools.cache(on_device)
