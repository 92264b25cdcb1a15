"""Make a trained vision classifier forget a class, a set of images or a wrong label."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forgetkit.adapting import adapt
    from forgetkit.api import Request, forget
    from forgetkit.auditing.record import Audit
    from forgetkit.auditing.references import train_references
    from forgetkit.auditing.run import audit
    from forgetkit.comparing import compare
    from forgetkit.engine.guard import Guard
    from forgetkit.errors import (
        BadHyperparameter,
        BadTarget,
        CannotSplitModel,
        DataError,
        ForgetkitError,
        MissingFile,
        ModelError,
        PatchMismatch,
        UnknownMethod,
        UnlearningFailed,
    )
    from forgetkit.importance_reading import importance_of
    from forgetkit.loading import load_model
    from forgetkit.method import Card, Method, register
    from forgetkit.patch import Patch
    from forgetkit.recipe import Trained
    from forgetkit.result import Result
    from forgetkit.searching import search
    from forgetkit.statistics import Statistics
    from forgetkit.training_log import AmnesiacLog

__version__ = "0.1.0"

_HOME = {
    "Audit": "auditing.record",
    "audit": "auditing.run",
    "train_references": "auditing.references",
    "forget": "api",
    "Request": "api",
    "adapt": "adapting",
    "compare": "comparing",
    "Guard": "engine.guard",
    "importance_of": "importance_reading",
    "load_model": "loading",
    "Card": "method",
    "Method": "method",
    "register": "method",
    "Patch": "patch",
    "Trained": "recipe",
    "Result": "result",
    "search": "searching",
    "AmnesiacLog": "training_log",
    "Statistics": "statistics",
    "ForgetkitError": "errors",
    "BadHyperparameter": "errors",
    "BadTarget": "errors",
    "CannotSplitModel": "errors",
    "DataError": "errors",
    "MissingFile": "errors",
    "ModelError": "errors",
    "PatchMismatch": "errors",
    "UnknownMethod": "errors",
    "UnlearningFailed": "errors",
}

__all__ = [
    "AmnesiacLog",
    "Audit",
    "BadHyperparameter",
    "BadTarget",
    "CannotSplitModel",
    "Card",
    "DataError",
    "ForgetkitError",
    "Guard",
    "Method",
    "MissingFile",
    "ModelError",
    "Patch",
    "PatchMismatch",
    "Request",
    "Result",
    "Statistics",
    "Trained",
    "UnknownMethod",
    "UnlearningFailed",
    "adapt",
    "audit",
    "compare",
    "forget",
    "importance_of",
    "load_model",
    "register",
    "search",
    "train_references",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``import forgetkit`` itself stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'forgetkit' has no attribute {name!r}")
    home = importlib.import_module(f"forgetkit.{_HOME[name]}")
    return getattr(home, name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
