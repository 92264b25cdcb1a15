"""Reference models: trained without the samples to forget, for attacks that compare with such."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from forgetkit import __version__
from forgetkit.adapting import unwrap
from forgetkit.api import Request, forget
from forgetkit.auditing import inputs
from forgetkit.copying import independent_copy
from forgetkit.data.loaders import Loader
from forgetkit.data.set_digest import set_digest
from forgetkit.engine.surroundings import own_surroundings
from forgetkit.errors import BadHyperparameter, BadTarget
from forgetkit.goal import Classes, Goal, Instances
from forgetkit.method import Method, build
from forgetkit.whole_files import written_whole

logger = logging.getLogger("forgetkit")


@own_surroundings()
def train_references(
    model: nn.Module,
    loader: Loader,
    *,
    classes: Sequence[int | str] | None = None,
    instances: Sequence[int] | None = None,
    retain: Loader | None = None,
    count: int = 4,
    minutes: float | None = None,
    cache: str | Path | None = None,
    fresh: Mapping[str, Tensor] | Callable[[], nn.Module] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = logger.info,
    **recipe: Any,  # noqa: ANN401
) -> list[nn.Module]:
    """Train models of the same architecture without the samples to forget.

    They are what ``audit(..., reference=...)`` compares with: one shows where retraining
    leads, several how much two retrained models differ by themselves, and RMIA and LiRA need them
    as models that never saw the samples. Each has untrained weights of its own, drawn from
    ``seed``, ``seed + 1``, ...; the data are the same. The model itself is left as it is.

    Args:
        model: the architecture to train; its weights are not used.
        loader: the training data.
        classes: leave these classes out.
        instances: or leave these positions out.
        retain: data to train on, when ``loader`` holds the samples to forget alone.
        count: number of models.
        minutes: begin no further training when the next is likely to end later; the first one
            is always trained.
        cache: a folder to keep the models in; a second call with the same architecture, data,
            recipe, seed and version of forgetkit reads them. Two architectures are told apart by
            how the model prints itself, with the names and shapes of its tensors: after a change
            of a ``forward`` alone, take another folder. With ``fresh`` nothing tells two functions
            apart, so it must be ``None``.
        fresh: untrained weights, or a function that builds an untrained model.
        device: where to train; the default is a CUDA device, else the CPU.
        seed: of the first model.
        say: called with one line about each model.
        recipe: settings of the method ``retrain``: ``epochs``, ``lr``, ``optimizer``, ...

    Returns:
        At most ``count`` models in eval mode, fewer when the time was up.

    Raises:
        BadTarget: not exactly one of ``classes`` and ``instances`` was given.
        BadHyperparameter: ``count``, ``minutes``, ``cache`` or the recipe does not fit.
        ForgetkitError: the data or the model cannot be used.
    """
    unwrap(model)  # refuses what is no module
    if (classes is None) == (instances is None):
        raise BadTarget(
            "train_references(classes=..., instances=...): expected one of the two, found "
            f"{'neither' if classes is None else 'both'}; say which samples the models must not see"
        )
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadHyperparameter(
            f"train_references(count={count!r}): expected a whole number from 1, found {count!r}; "
            "three or more show how much retrained models differ"
        )
    timed = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if minutes is not None and not (timed and minutes > 0):
        raise BadHyperparameter(
            f"train_references(minutes={minutes!r}): expected a positive number, found "
            f"{minutes!r}; leave it out to train all {count} models"
        )
    if cache is not None and fresh is not None:
        raise BadHyperparameter(
            "train_references(cache=..., fresh=...): expected one of the two, found both; keep the "
            "models yourself, since the cache cannot tell what another function would build"
        )
    method = build("retrain", recipe)  # refuses a bad recipe before data are read
    goal: Goal = Classes(classes) if classes is not None else Instances(instances)
    key = None if cache is None else _key(model, inputs.Given(goal, loader, retain), method)
    folder = None if cache is None else Path(cache)
    found: list[nn.Module] = []
    start = time.perf_counter()
    trained = 0
    for number in range(count):
        file = None if folder is None else folder / f"reference-{key}-s{seed + number}.safetensors"
        twin = independent_copy(model)
        if file is not None and file.exists():
            load_model(twin, file)
            say(f"reference {number + 1} of {count}: read from {file}")
        else:
            spent = time.perf_counter() - start
            if minutes is not None and found and spent * (trained + 1) > 60 * minutes * trained:
                say(f"time is up: {len(found)} of {count} reference models")
                break
            request = _request(twin, goal, retain, fresh, device)
            request.using("retrain", **recipe).seed(seed + number).run(loader, guard=None)
            trained += 1
            say(f"reference {number + 1} of {count}: trained")
            if file is not None:
                with written_whole(file) as partial:
                    save_model(twin, str(partial))
        found.append(twin.eval())
    return found


def _request(
    model: nn.Module,
    goal: Goal,
    retain: Loader | None,
    fresh: Mapping[str, Tensor] | Callable[[], nn.Module] | None,
    device: torch.device | str | None,
) -> Request:
    """Return what is asked of one copy, all but recipe and seed."""
    request = forget(model).on(device)
    if isinstance(goal, Classes):
        request = request.classes(goal.classes)
    else:
        request = request.instances(goal.positions if isinstance(goal, Instances) else None)
    request = request if retain is None else request.retain(retain)
    return request if fresh is None else request.fresh(fresh)


def _key(model: nn.Module, given: inputs.Given, method: Method) -> str:
    """Return a name for what these models depend on: architecture, data, recipe and version."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    material = inputs.read(model, given, device, seed=0)
    # Activations and settings that no tensor shows; addresses differ from process to process.
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))
    described = {
        "version": __version__,
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "layers": layers,
        "tensors": [(n, list(t.shape), str(t.dtype)) for n, t in model.state_dict().items()],
        "sets": {name: set_digest(samples) for name, samples in material.sets.items()},
        "recipe": method.to_json(),  # defaults too, which another version may change
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
