"""Writing a model in its own format: transformers, timm, a PEFT adapter, or plain safetensors."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from forgetkit.checkpoint import WEIGHT_FILES, holds_weights, replace_all
from forgetkit.errors import ModelError
from forgetkit.fingerprint import TensorBits, model_tensors, storage_key
from forgetkit.origin import origin_of
from forgetkit.same_network import same_network
from forgetkit.save_record import RECORD_FILE, floating_dtypes
from forgetkit.tensor_writing import write_tensors
from forgetkit.torchvision_models import name_of
from forgetkit.whole_files import beside, path_of

logger = logging.getLogger("forgetkit")

RECORD_FORMAT = "forgetkit.model/1"
CARD_FILE = "README.md"
_PREPROCESSING = "preprocessor_config.json"
_OVERWRITE = "call forgetkit.saving.save_model(model, directory, overwrite=True)"
_SHOWN = 3
_OTHER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIGURATIONS = ("config.json", "adapter_config.json", _PREPROCESSING, RECORD_FILE)


def save_model(
    model: nn.Module,
    directory: str | Path,
    *,
    card: str | None = None,
    changed: Iterable[str] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Write a folder that ``load_model`` and the model's own library load again, or nothing.

    Compile and data-parallel wrappers are left out. A transformers model is written with
    ``save_pretrained``, a timm model that its architecture can rebuild as a timm folder, a PEFT
    model as its adapter, anything else as ``model.safetensors``. ``forgetkit.json`` says which, and
    what of ``get_extra_state`` had to be left out because it is no tensor.

    Args:
        model: what to write; not changed.
        directory: created if absent. An earlier save of forgetkit is replaced.
        card: Markdown for ``README.md``.
        changed: names of edited tensors, to make sure that a PEFT adapter has them all.
        overwrite: also replace files of the same names that forgetkit did not write.

    Returns:
        The files written.

    Raises:
        ModelError: the folder holds files of something else, weights that would stay beside the
            new ones, or the form cannot hold the edit or what a module keeps.
    """
    inner = unwrapped(model)
    target = path_of(directory, "directory")
    refuse_in_use(target, overwrite=overwrite, card=card is not None, names=())
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(target)
    partial.mkdir()
    try:
        record = _write_form(inner, partial, changed)
        if card is not None:
            (partial / CARD_FILE).write_text(card, "utf-8")
        files = sorted(p.name for p in partial.iterdir())
        record = {"format": RECORD_FORMAT, **record, "files": [*files, RECORD_FILE]}
        (partial / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        return _put(partial, target, [*files, RECORD_FILE], overwrite=overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_in_use(
    directory: str | Path,
    *,
    overwrite: bool = False,
    card: bool = True,
    names: Collection[str] = _CONFIGURATIONS,
) -> None:
    """Refuse a place that holds something else than an earlier save.

    Args:
        directory: where to save.
        overwrite: whether files of the same names that forgetkit did not write may be replaced.
        card: whether a model card is to be written.
        names: other files that a save may write, as long as it is not known which it will.

    Raises:
        ModelError: it is a file, a folder of other files, or an earlier save that came to hold
            files of something else with names that a save needs.
    """
    target = Path(directory)
    if not target.exists():
        return
    if not target.is_dir():
        raise ModelError(
            f"directory {target} is expected to be a folder; found a file. Choose another path."
        )
    earlier = _earlier_files(target)
    foreign = sorted({path.name for path in target.iterdir()} - earlier)
    if foreign and not earlier and not overwrite:
        raise ModelError(
            f"directory {target} is expected to be empty or an earlier save; found {foreign[:4]}. "
            f"Choose another folder, or {_OVERWRITE}."
        )
    needed = {*names, *((CARD_FILE,) if card else ())}
    in_the_way = [name for name in foreign if name in needed or holds_weights(name)]
    if in_the_way and not overwrite:
        raise ModelError(_not_ours(target, in_the_way))


def _not_ours(target: Path, names: list[str]) -> str:
    return (
        f"directory {target} is expected to be empty or an earlier save; found {names[:4]} in it, "
        f"which forgetkit did not write. Choose another folder, or {_OVERWRITE}."
    )


def holds_a_save(directory: Path) -> bool:
    """Return whether a folder holds an earlier save, which the next one replaces."""
    return bool(_earlier_files(directory))


def push_to_hub(
    model: nn.Module, name: str, card: str | None = None, *, private: bool = False
) -> str:
    """Upload what ``save_model`` writes to the Hugging Face hub.

    Earlier commits of a hub repository stay readable: upload to a new one when the old weights
    must not be seen any more.

    Args:
        model: what to upload.
        name: ``owner/name``, or a name under your own account.
        card: Markdown for ``README.md``.
        private: whether a repository that is created is private.

    Returns:
        The address of the repository.

    Raises:
        ModelError: a path instead of a name, not logged in, not allowed, or not reached.
    """
    from huggingface_hub import HfApi  # slow; only when asked for
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise ModelError(
            f"name {name!r} is expected to be that of a hub repository, owner/name; found a path. "
            "Write to a folder with save()."
        )
    api = HfApi(library_name="forgetkit")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_model(model, folder, card=card)
        try:
            repo = api.create_repo(name, exist_ok=True, private=private)
            api.upload_folder(
                repo_id=repo.repo_id,
                folder_path=folder,
                commit_message="Upload the model after forgetting",
            )
        except (HfHubHTTPError, LocalTokenNotFoundError, ValueError) as error:
            raise ModelError(
                f"name {name!r} is expected to be a hub repository that you may write to; found "
                f"{type(error).__name__}: {error}. Check the name, log in with 'hf auth login', "
                "or write to a folder with save()."
            ) from error
        except Exception as error:  # of the HTTP library that the hub's client is built on
            raise ModelError(
                f"name {name!r} is expected to be on a hub that answers; found "
                f"{type(error).__name__}: {error}. Check the connection and try again; save() "
                "keeps the model in a folder meanwhile."
            ) from error
    return str(repo)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside compile, DataParallel and DistributedDataParallel wrappers.

    Raises:
        ModelError: not a module, or wrapped by FSDP, whose tensors are spread over processes.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model is expected to be a torch.nn.Module; found {type(model).__name__}. "
            "Pass the model itself."
        )
    kind = type(model).__name__
    if kind == "FullyShardedDataParallel":
        raise ModelError(
            "model is expected to be whole in this process; found FSDP shards. Gather the full "
            "state dict into an unwrapped model first."
        )
    if kind == "OptimizedModule":
        return unwrapped(model.get_submodule("_orig_mod"))
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    return model


def _write_form(model: nn.Module, folder: Path, changed: Iterable[str]) -> dict[str, object]:
    """Write the model's files and return what ``forgetkit.json`` says about them."""
    for name, tensor in model_tensors(model).items():
        TensorBits.of(tensor, name)  # refuses what has no values to write
    described: dict[str, object] = {"class": _class_path(model)}
    if _is_from(model, "peft", "PeftModel"):
        _require_in_adapter(model, changed)
        model.save_pretrained(str(folder))  # type: ignore[operator]
        return {"form": "peft", **described, "dtypes": floating_dtypes(model)}
    if _is_from(model, "transformers", "PreTrainedModel"):
        _refuse_extra_state(model)
        model.save_pretrained(str(folder))  # type: ignore[operator]
        origin = origin_of(model)
        if origin and origin.folder and (origin.folder / _PREPROCESSING).is_file():
            shutil.copyfile(origin.folder / _PREPROCESSING, folder / _PREPROCESSING)
        return {"form": "transformers", **described, "dtypes": floating_dtypes(model)}
    if _write_timm(model, folder):
        return {"form": "timm", **described}
    extra = write_tensors(model, folder / WEIGHT_FILES[0])
    if extra:
        logger.warning(
            "%s: what get_extra_state returned is no tensor and is not saved (%s); give it to the "
            "model again after loading, or save model.state_dict() with torch.save too",
            type(model).__name__,
            ", ".join(extra[:_SHOWN]),
        )
    return {**_how_to_build(model), **described, **({"not_saved": extra} if extra else {})}


def _refuse_extra_state(model: nn.Module) -> None:
    extra = [name for name, held in model.state_dict().items() if not isinstance(held, Tensor)]
    if extra:
        raise ModelError(
            "model is expected to keep tensors only, to be written by transformers; found "
            f"{extra[:_SHOWN]}, which get_extra_state made. Let it return a tensor, or save "
            "model.state_dict() with torch.save."
        )


def _how_to_build(model: nn.Module) -> dict[str, object]:
    known = name_of(model)
    if known is not None:
        return {"form": "torchvision", "name": known[0], "num_classes": known[1]}
    origin = origin_of(model)
    if origin is not None and origin.form == "factory":
        return {"form": "factory", "name": origin.name}
    return {"form": "class"}


def _write_timm(model: nn.Module, folder: Path) -> bool:
    """Write a timm folder if timm can rebuild this model from it; tell whether it was written."""
    if "timm" not in sys.modules or not isinstance(getattr(model, "pretrained_cfg", None), dict):
        return False
    import timm
    from timm.models import save_for_hf

    try:
        save_for_hf(model, str(folder), safe_serialization=True)
        with torch.random.fork_rng(devices=[]):  # building draws weights; leave no trace of that
            twin = timm.create_model(f"local-dir:{folder}", pretrained=False)
        rebuilt = same_network(model, twin)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, AssertionError):
        rebuilt = False
    if rebuilt:
        return True
    for written in folder.iterdir():  # altered by its owner: no architecture name stands for it
        written.unlink()
    return False


def _require_in_adapter(model: nn.Module, changed: Iterable[str]) -> None:
    from peft import get_peft_model_state_dict

    live = model_tensors(model)
    kept = {storage_key(t) for t in get_peft_model_state_dict(model).values()}
    lost = [name for name in changed if name in live and storage_key(live[name]) not in kept]
    if lost:
        raise ModelError(
            f"model is expected to be edited in its PEFT adapter, which is all that is saved; "
            f"found edited tensors of the model under it: {lost[:3]}. Save "
            "model.merge_and_unload(), or name the head in modules_to_save of the adapter."
        )


def _is_from(model: nn.Module, package: str, base: str) -> bool:
    loaded = sys.modules.get(package)  # not imported means that no such model can exist
    return loaded is not None and isinstance(model, getattr(loaded, base))


def _class_path(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _put(partial: Path, target: Path, files: list[str], *, overwrite: bool) -> list[Path]:
    """Move a finished folder into place, over an earlier save if there is one."""
    if not target.exists():
        partial.replace(target)
        return [target / name for name in files]
    earlier = _earlier_files(target)
    present = {p.name for p in target.iterdir()}
    foreign = sorted(present - earlier)
    in_the_way = [name for name in foreign if name in files]
    if in_the_way and not overwrite:
        raise ModelError(_not_ours(target, in_the_way))
    stale = [name for name in foreign if name not in files and holds_weights(name)]
    if stale:
        raise ModelError(
            f"directory {target} is expected to hold one set of weights after saving; found "
            f"{stale[:4]}, which would stay and keep what was forgotten. Remove them first or "
            "choose another folder."
        )
    replace_all([(partial / name, target / name) for name in files])
    for name in earlier - set(files):
        (target / name).unlink(missing_ok=True)
    return [target / name for name in files]


def _earlier_files(folder: Path) -> set[str]:
    """Return the names of the files that an earlier save wrote and that are still there."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text("utf-8"))
        listed = record["files"] if record["format"] == RECORD_FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # Only plain names: the list must not reach outside the folder.
    return {
        n for n in listed if isinstance(n, str) and Path(n).name == n and (folder / n).is_file()
    }
