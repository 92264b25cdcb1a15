"""Getting a model from a string: nothing is downloaded unasked, no code in a file is run."""

from __future__ import annotations

import difflib
import importlib
import pickle
import re
from functools import reduce
from pathlib import Path

import torch
from torch import nn

from forgetkit.checkpoint import WEIGHT_FILES
from forgetkit.errors import ModelError
from forgetkit.hub import hub_folder
from forgetkit.origin import Origin, origin_of, remember
from forgetkit.save_record import RECORD_FILE, dtypes_of_save, is_save, not_loaded, read_json
from forgetkit.torchvision_models import build, builder_of
from forgetkit.weights import cast, load_weights

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError)
_FORMS = (
    "a transformers or timm folder, torchvision/<name>, timm/<name>, package.module:factory, or "
    "with allow_download=True a hub id"
)

__all__ = ["Origin", "load_model", "origin_of"]


def load_model(
    source: str | Path,
    *,
    state_dict: str | Path | None = None,
    num_classes: int | None = None,
    allow_download: bool = False,
    untrained: bool = False,
) -> nn.Module:
    """Return a model in eval mode, on the CPU.

    Args:
        source: a local folder of transformers, timm, PEFT or ``Result.save`` (of a module of your
            own that folder holds weights only: name its factory, and them as ``state_dict``);
            ``torchvision/<name>``; ``timm/<name>``; ``package.module:factory``, which names
            something that returns a module when called without arguments; or a hub id.
        state_dict: weights for it: ``.safetensors``, or a torch state dict (read with
            ``weights_only=True``). They are cast to the model's dtypes, but for those in a folder
            of ``Result.save``, whose dtypes the model gets.
        num_classes: classes of a torchvision or timm architecture filled from ``state_dict``.
        allow_download: fetch what the local caches do not hold.
        untrained: build torchvision and timm architectures with fresh weights, to look at them.

    Raises:
        ModelError: nothing loadable there, weights that do not fit, or a download that nobody
            allowed.
    """
    for name, given in (("source", source), ("state_dict", state_dict)):
        if not isinstance(given, (str, Path)) and (given is not None or name == "source"):
            raise ModelError(
                f"{name} is expected to be a string or a path; found {type(given).__name__}. A "
                "model in memory is passed itself, and takes its weights by load_state_dict."
            )
    text = str(source)
    folder = Path(source)
    head, _, name = text.partition("/")
    if folder.is_dir():
        model = _from_folder(folder, text, allow_download=allow_download)
        _check_classes(model, num_classes)
    elif folder.is_file():
        raise ModelError(
            f"source {text!r} is expected to say how to build the model ({_FORMS}); found a file, "
            f"which holds weights only. Pass the architecture, and state_dict={text!r}."
        )
    elif head == "torchvision" and name:
        model = _from_torchvision(
            name, text, state_dict, num_classes, allow_download=allow_download, untrained=untrained
        )
    elif head == "timm" and name and _timm_knows(name):
        model = _from_timm(
            name, text, state_dict, num_classes, allow_download=allow_download, untrained=untrained
        )
    elif _FACTORY.fullmatch(text):
        model = _from_factory(text)
        _check_classes(model, num_classes)
    elif _HUB_ID.fullmatch(text):
        try:
            local = hub_folder(text, allow_download=allow_download)
        except ModelError as error:
            if head != "timm":
                raise
            raise _unknown_timm(text, name, error) from None
        model = _from_folder(local, text, allow_download=allow_download)
        _check_classes(model, num_classes)
    else:
        raise ModelError(
            f"source {text!r} is expected to be {_FORMS}; found no such folder and no name of that "
            "form. Check the path, or pass the model itself."
        )
    if state_dict is not None:
        load_weights(model, state_dict, as_stored=is_save(Path(state_dict)))
    return model.eval()


def _from_folder(folder: Path, source: str, *, allow_download: bool) -> nn.Module:
    if (folder / "adapter_config.json").is_file():
        return _from_peft(folder, source, allow_download=allow_download)
    config = read_json(folder / "config.json")
    if "architecture" in config:
        return _from_timm_folder(folder, source)
    if "architectures" in config or "model_type" in config:
        return _from_transformers(folder, source)
    record = read_json(folder / RECORD_FILE)
    weights = folder / WEIGHT_FILES[0]
    if record.get("form") == "torchvision" and isinstance(record.get("name"), str):
        classes = record.get("num_classes")
        name, count = str(record["name"]), classes if isinstance(classes, int) else None
        model = build(name, count)
        load_weights(model, weights, as_stored=True)
        remember(model, Origin("torchvision", source, name, folder, count))
        return model
    if record:
        built_by = record.get("name") or record.get("class")
        # Importing what a data file names would let the file choose what code runs.
        raise ModelError(
            f"source {source!r} is expected to be a folder that says how to build the model; found "
            f"weights of {built_by}. Pass 'package.module:factory' (something that builds that "
            f"class) as source, and state_dict={str(weights)!r}."
        )
    raise ModelError(
        f"source {source!r} is expected to be a transformers or timm folder, or one written by "
        f"Result.save; found {sorted(p.name for p in folder.iterdir())[:6]}, no config.json of "
        "either. Save the model with save_pretrained or timm.models.save_for_hf."
    )


def _from_transformers(folder: Path, source: str) -> nn.Module:
    from transformers import AutoModelForImageClassification  # slow; only when asked for

    dtypes = dtypes_of_save(folder)
    # one dtype that holds all of them exactly
    option = {"dtype": reduce(torch.promote_types, dtypes.values())} if dtypes else {}
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **option,
        )
    except _LOAD_ERRORS as error:
        raise not_loaded(source, "an image classifier of transformers", error) from error
    fresh = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if fresh:
        raise ModelError(
            f"source {source!r} is expected to hold a whole trained classifier; found no weights "
            f"for {fresh[:3]}, which would start at random. Train the classifier first, or pass "
            "the folder of one that was."
        )
    cast(model, dtypes)
    return _noted(model, Origin("transformers", source, folder=folder))


def _from_timm_folder(folder: Path, source: str) -> nn.Module:
    import timm  # slow; only when asked for

    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (*_LOAD_ERRORS, TypeError, AssertionError) as error:
        raise not_loaded(source, "a timm model", error) from error
    if is_save(folder):  # timm builds in single precision
        load_weights(model, folder / WEIGHT_FILES[0], as_stored=True)
    name = str(read_json(folder / "config.json").get("architecture", ""))
    return _noted(model, Origin("timm", source, name, folder))


def _from_timm(
    name: str,
    source: str,
    state_dict: str | Path | None,
    num_classes: int | None,
    *,
    allow_download: bool,
    untrained: bool,
) -> nn.Module:
    import timm  # slow; only when asked for

    if state_dict is not None or untrained:
        model = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return _noted(model, Origin("timm", source, name, num_classes=num_classes))
    _refuse_random_head(source, num_classes)
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise ModelError(
            f"source {source!r} is expected to have published weights; found none for it in timm. "
            "Pass state_dict, or untrained=True to look at the architecture."
        )
    return _from_timm_folder(hub_folder(known.hf_hub_id, allow_download=allow_download), source)


def _from_torchvision(
    name: str,
    source: str,
    state_dict: str | Path | None,
    num_classes: int | None,
    *,
    allow_download: bool,
    untrained: bool,
) -> nn.Module:
    if state_dict is not None or untrained:
        model = build(name, num_classes)
        return _noted(model, Origin("torchvision", source, name, num_classes=num_classes))
    import torchvision  # slow; only when asked for
    from torch.hub import get_dir

    _refuse_random_head(source, num_classes)
    builder_of(name)  # an unknown name gets its own message
    weights = torchvision.models.get_model_weights(name)["DEFAULT"]
    cached = Path(get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if not allow_download and not cached.is_file():
        raise ModelError(
            f"source {source!r} is expected to come with weights at hand; found none (no "
            f"state_dict, and {cached.name} is not in torch's cache). Pass state_dict=..., or "
            "allow_download=True, or untrained=True to look at the architecture."
        )
    model = torchvision.models.get_model(name, weights=weights)
    return _noted(model, Origin("torchvision", source, name))


def _from_factory(source: str) -> nn.Module:
    module_name, _, path = source.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"source {source!r} is expected to be package.module:factory; found {error}. Run from "
            "the folder that holds the package, or install it, and check the spelling."
        ) from error
    try:
        model = found() if callable(found) and not isinstance(found, nn.Module) else found
    except Exception as error:
        raise ModelError(
            f"source {source!r} is expected to name a function without arguments that builds the "
            f"model; found that it raised {type(error).__name__}: {error}. Give its arguments "
            "default values, or load the model yourself and pass it."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"source {source!r} is expected to name something that returns a torch.nn.Module; "
            f"found {type(model).__name__}. Name a function without arguments that builds it."
        )
    return _noted(model, Origin("factory", source, source))


def _from_peft(folder: Path, source: str, *, allow_download: bool) -> nn.Module:
    base_path = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base_path, str) or not base_path:
        raise ModelError(
            f"source {source!r} is expected to name the model of its adapter; found no "
            "base_model_name_or_path in adapter_config.json. Load that model yourself and pass "
            "PeftModel.from_pretrained(base, folder)."
        )
    try:
        from peft import PeftModel  # optional
    except ImportError as error:
        raise ModelError(
            f"source {source!r} is expected to be loadable here; found a PEFT adapter and no peft "
            "package. Install peft."
        ) from error
    base = load_model(base_path, allow_download=allow_download)
    model = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
    cast(model, dtypes_of_save(folder))
    return _noted(model, Origin("peft", source, folder=folder))


def _noted(model: nn.Module, origin: Origin) -> nn.Module:
    remember(model, origin)
    return model


def _timm_knows(name: str) -> bool:
    import timm  # slow; only when asked for

    return bool(timm.is_model(name.partition(".")[0]))


def _unknown_timm(source: str, name: str, error: ModelError) -> ModelError:
    """Return the error for what is neither an architecture of timm nor a model of its hub pages."""
    import timm

    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(f'timm/{one}' for one in near)}? " if near else ""
    return ModelError(
        f"source {source!r} is expected to be an architecture of timm; found none of that name "
        f"({hint}forgetkit took it for a hub id then: {error})"
    )


def _check_classes(model: nn.Module, num_classes: int | None) -> None:
    stored = getattr(model, "num_classes", None) or getattr(model, "num_labels", None)
    if num_classes is not None and stored != num_classes:
        raise ModelError(
            f"num_classes is expected to be left out, or equal to what the model was saved with; "
            f"found {num_classes} for a model of {stored}. Leave it out."
        )


def _refuse_random_head(source: str, num_classes: int | None) -> None:
    if num_classes is not None:
        raise ModelError(
            f"num_classes is expected together with state_dict for {source!r}; found it alone, so "
            "the classifier would start at random. Pass state_dict, or leave num_classes out."
        )
