"""What tells two requests apart: all that the course of a run depends on, as one SHA-256."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forgetkit.data.randomness import random_state_kept, repeats
from forgetkit.data.set_digest import set_digest
from forgetkit.engine.session import accelerator_states
from forgetkit.fingerprint import digest, fingerprint, is_dense, model_prints

if TYPE_CHECKING:
    from forgetkit.api import Request
    from forgetkit.engine.guard import Guard
    from forgetkit.engine.place import Place
    from forgetkit.engine.preparing import Prepared
    from forgetkit.types import SampleSet

_PART = 1 << 20


def request_key(request: Request, prepared: Prepared, place: Place, guard: Guard | None) -> str:
    """Return a SHA-256 over request, model and data, the same in any process.

    Of each set, positions and labels of all samples count, and, where reading them again gives the
    same, the images of the first batch.

    Args:
        request: what was asked.
        prepared: on which sets and with which method.
        place: where.
        guard: what watches it.
    """
    sets: dict[str, SampleSet | None] = {
        "forget": prepared.sets.forget, "retain": prepared.sets.retain, **prepared.validation,
    }  # fmt: skip
    wanted = prepared.sets.forget.new_labels
    described = {
        "version": importlib.metadata.version("forgetkit"),
        "method": {name: _value(one) for name, one in prepared.method.to_json().items()},
        "goal": [prepared.goal.kind, sorted(prepared.forget_classes)],
        "new labels": None if wanted is None else wanted.tolist(),
        "seed": request.random_seed,
        "accumulate": request.accumulate,
        "head": request.head_name,
        "output": _name(request.output),
        "guard": None if guard is None else asdict(guard),
        "where": [place.device.type, place.precision, place.world, len(accelerator_states())],
        "model": _print_of_model(prepared.model),
        "initial": _initial(request.initial),
        "sets": {name: _print_of_set(s) for name, s in sets.items() if s is not None},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _print_of_model(model: nn.Module) -> list[object]:
    """Return bits and flags: frozen layers stay, and buffers that are not saved count, too."""
    buffers = {name: b for name, b in model.named_buffers() if is_dense(b)}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    return [digest(model_prints(model)), digest(fingerprint(buffers)), trained]


def _print_of_set(samples: SampleSet) -> list[object]:
    listed = json.dumps([samples.positions.tolist(), samples.labels.tolist()])
    found: list[object] = [samples.batch_size, hashlib.sha256(listed.encode()).hexdigest()]
    with random_state_kept():
        few = samples.take(torch.arange(min(samples.batch_size, len(samples))))
        return [*found, set_digest(few)] if repeats(samples) else found


def _initial(initial: Mapping[str, Tensor] | object) -> object:
    return digest(fingerprint(initial)) if isinstance(initial, Mapping) else _name(initial)


def _name(value: object) -> object:
    """Return a plain value as it is, and of a function where it was defined."""
    if not callable(value):
        return value
    kind = value if hasattr(value, "__qualname__") else type(value)
    return [getattr(kind, "__module__", ""), getattr(kind, "__qualname__", "")]


def _value(value: Any) -> object:  # noqa: ANN401  a hyper-parameter of any kind
    """Return a hyper-parameter, with what a file that it names holds."""
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or not path.exists():
        return value
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [value, [[file.name, _sha256(file)] for file in files if file.is_file()]]


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(_PART):
            found.update(part)
    return found.hexdigest()
