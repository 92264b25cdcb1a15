"""What ``save_model`` notes in ``forgetkit.json`` beside the weights, read back for loading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from forgetkit.errors import ModelError
from forgetkit.fingerprint import dtype_from_name, dtype_name, model_tensors

RECORD_FILE = "forgetkit.json"


def is_save(path: Path) -> bool:
    """Tell whether weights were written by ``save_model``, which keeps the dtypes of a model.

    Args:
        path: a file of weights, or the folder of one.
    """
    return bool(read_json((path if path.is_dir() else path.parent) / RECORD_FILE))


def floating_dtypes(model: nn.Module) -> dict[str, str]:
    """Return the floating dtypes by name, for loaders that choose one for a whole model."""
    tensors = model_tensors(model).items()
    return {name: dtype_name(t.dtype) for name, t in tensors if t.is_floating_point()}


def dtypes_of_save(folder: Path) -> dict[str, torch.dtype]:
    """Return the floating dtypes by name that were noted; empty where none were."""
    noted = read_json(folder / RECORD_FILE).get("dtypes")
    listed = noted.items() if isinstance(noted, dict) else ()
    return {name: dtype_from_name(str(dtype)) for name, dtype in listed}


def read_json(path: Path) -> Mapping[str, object]:
    """Return a JSON object; empty when there is no such file.

    Raises:
        ModelError: the file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise not_loaded(str(path), "a JSON file", error) from error
    return content if isinstance(content, dict) else {}


def not_loaded(source: str, expected: str, error: Exception) -> ModelError:
    """Return the error for what is not what it should be."""
    reason = " ".join(str(error).split())[:300]
    return ModelError(
        f"source {source!r} is expected to be {expected}; found otherwise "
        f"({type(error).__name__}: {reason}). Check the folder, or load the model yourself and "
        "pass it."
    )
