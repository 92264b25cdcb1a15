"""All classifiers of timm, small: 10 classes, 96 pixels and few blocks where they allow it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from forgetkit.dryrun.sweep.building import (
    LARGEST,
    cheap_initialisation,
    cheap_weights,
    count,
)
from forgetkit.dryrun.sweep.checking import Outcome, check, pictures

_SIDE = 96
_FULL_DEPTH = 4_000_000  # parameters up to which no block is left out
_SHALLOW: tuple[dict[str, object], ...] = (
    {"depth": 2},
    {"depths": (1, 1, 1, 1)},
    {"depths": (1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {"block_counts": (1, 1, 1, 1)},
    {"embed_depths": (1, 1, 1, 1)},
    {"num_blocks": 2},
)


def names() -> list[str]:
    """Return all model names of the installed timm, in turn over its source modules.

    The first hundred or so are one model of every module, so that a part of a sweep is broad.
    """
    import timm

    by_module: dict[str, list[str]] = {}
    for name in timm.list_models():
        by_module.setdefault(timm.models._registry._model_to_module[name], []).append(name)  # noqa: SLF001
    rounds = itertools.zip_longest(*by_module.values())
    return [name for each in rounds for name in each if name is not None]


def outcomes(wanted: list[str]) -> Iterator[Outcome]:
    """Build, split and check each model in turn."""
    for name in wanted:
        yield one(name)


def one(name: str) -> Outcome:
    """Build, split and check one model; a size that it cannot take is no verdict."""
    outcome = Outcome(name, "not-run")
    for small, shallow in ((True, True), (False, True), (False, False)):
        outcome = _one(name, small=small, shallow=shallow)
        if outcome.status not in ("failed", "not-run"):
            break
    return outcome


def _one(name: str, *, small: bool, shallow: bool) -> Outcome:
    try:
        model, side, note = build(name, small=small, shallow=shallow)
    except Exception as error:
        return Outcome(name, "not-run", detail=f"{type(error).__name__}: {error}"[:300])
    device = "meta" if next(model.parameters()).is_meta else "cpu"
    channels = int(getattr(model, "in_chans", None) or _config(model).get("input_size", (3,))[0])
    for size in dict.fromkeys(side):
        example = pictures(1, channels, size, device)
        try:
            with torch.no_grad():
                model.eval()
                outcome = check(
                    name,
                    model,
                    example,
                    pictures(2, channels, size, device),
                    note=f"{note}{size[0]} px",
                )
        except Exception as error:
            outcome = Outcome(name, "failed", detail=f"{type(error).__name__}: {error}"[:300])
        if outcome.status != "failed":
            return outcome
    return outcome


def build(
    name: str, *, small: bool = True, shallow: bool = True
) -> tuple[nn.Module, list[tuple[int, int]], str]:
    """Build a model; return it with picture sizes to try and a note on what was left out."""
    import timm

    encoder = name.endswith("_enc")
    base: dict[str, object] = {} if encoder else {"num_classes": 10}
    size = _input_size(timm.get_pretrained_cfg(name))
    sizes = [(_SIDE, _SIDE), size]
    plain = _on_meta(name, base)
    options, note = dict(base), ""
    resized = _on_meta_or_none(name, {**base, "img_size": _SIDE}) if small else None
    if resized is not None:
        options["img_size"] = _SIDE
        plain = resized
    elif hasattr(plain, "pos_embed") or hasattr(plain, "patch_embed"):
        sizes = [size, (_SIDE, _SIDE)]
    if shallow and count(plain) > _FULL_DEPTH:
        for fewer in _SHALLOW:
            reduced = _on_meta_or_none(name, {**options, **fewer})
            if reduced is not None and count(reduced) < count(plain):
                options.update(fewer)
                plain, note = reduced, f"{next(iter(fewer))} reduced, "
                break
    if count(plain) > LARGEST:
        return plain, sizes, f"{note}meta, {count(plain) / 1e9:.2f} billion parameters, "
    with cheap_initialisation():
        model = _create(name, options)
    cheap_weights(model)
    return model, sizes, note


def _on_meta(name: str, options: Mapping[str, object]) -> nn.Module:
    with torch.device("meta"):
        return _create(name, options)


def _create(name: str, options: Mapping[str, object]) -> nn.Module:
    import timm

    creator: Callable[..., object] = timm.create_model
    model = creator(name, **options)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} is no module")
    return model


def _on_meta_or_none(name: str, options: Mapping[str, object]) -> nn.Module | None:
    try:
        return _on_meta(name, options)
    except Exception:
        return None


def _config(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return getattr(model, "pretrained_cfg", None) or {}


def _input_size(config: object) -> tuple[int, int]:
    fixed = getattr(config, "input_size", None) or (3, 224, 224)
    return int(fixed[1]), int(fixed[2])
