"""Patches on checkpoint files: the same result as on the model, and the same file back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from small_models import build_tied, same_bits, spread, timm_vit, vit
from torch import Tensor, nn

from forgetkit import load_model
from forgetkit.checkpoint import open_checkpoint, read_state_dict, replace_all
from forgetkit.errors import ModelError, PatchMismatch
from forgetkit.fingerprint import model_tensors
from forgetkit.patch import Patch
from forgetkit.saving import save_model as save_in_own_format
from forgetkit.weights import load_weights


def edited(model: nn.Module, part: str = "") -> tuple[Patch, dict[str, Tensor]]:
    """Edit the tensors whose names hold ``part``, in place; return the patch and the start."""
    start = {name: t.detach().clone() for name, t in model_tensors(model).items()}
    with torch.no_grad():
        for group in {id(t): t for n, t in model_tensors(model).items() if part in n}.values():
            if group.is_floating_point():
                group.mul_(1.25)
    return Patch.between(start, model_tensors(model), {"method": "test"}), start


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("shard_size", ["50GB", "6KB"])
@pytest.mark.parametrize("part", ["classifier", ""])
def test_a_transformers_folder(tmp_path: Path, shard_size: str, part: str) -> None:
    model = vit()
    folder = tmp_path / "vit"
    model.save_pretrained(folder, max_shard_size=shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size == "6KB")
    original = contents(folder)
    patch, _ = edited(model, part)
    written = patch.apply_to_file(folder)
    assert {p.parent.name for p in written} == {"vit"}
    assert set(contents(folder)) == set(original)
    assert same_bits(load_model(folder), model)
    with pytest.raises(PatchMismatch, match="already applied"):
        patch.apply_to_file(folder)
    patch.revert_file(folder)
    assert contents(folder) == original


def test_names_that_transformers_changes_on_loading_are_found(tmp_path: Path) -> None:
    model = vit()
    folder = tmp_path / "vit"
    model.save_pretrained(folder)
    stored = {
        name.replace("attention.q_proj", "attention.attention.query")
        .replace("vit.layers", "vit.encoder.layer"): tensor.clone()
        for name, tensor in model.state_dict().items()
    }  # fmt: skip
    save_file(stored, folder / "model.safetensors")
    patch, _ = edited(model, "q_proj")
    patch.apply_to_file(folder)
    held = load_file(folder / "model.safetensors")
    wanted = model.state_dict()["vit.layers.1.attention.q_proj.weight"]
    assert torch.equal(held["vit.encoder.layer.1.attention.attention.query.weight"], wanted)


def test_a_timm_folder_into_a_new_place(tmp_path: Path) -> None:
    model = timm_vit()
    save_in_own_format(model, tmp_path / "vit")
    original = contents(tmp_path / "vit")
    patch, _ = edited(model, "head")
    written = patch.apply_to_file(tmp_path / "vit", tmp_path / "new")
    assert written == [tmp_path / "new" / "model.safetensors"]
    assert contents(tmp_path / "vit") == original
    assert same_bits(load_model(tmp_path / "new"), model)
    with pytest.raises(ModelError, match=r"out .* is expected not to exist"):
        patch.apply_to_file(tmp_path / "vit", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "vit"]


def store_plain(start: dict[str, Tensor], path: Path) -> None:
    torch.save(start, path)


def store_wrapped(start: dict[str, Tensor], path: Path) -> None:
    torch.save({f"module._orig_mod.{name}": t for name, t in start.items()}, path)


def store_training(start: dict[str, Tensor], path: Path) -> None:
    criterion = {"weight": torch.ones(5)}
    torch.save({"epoch": 3, "state_dict": start, "criterion": criterion}, path)


def store_safetensors(start: dict[str, Tensor], path: Path) -> None:
    save_file(start, path)


@pytest.mark.parametrize(
    ("store", "name"),
    [
        (store_plain, "w.pt"),
        (store_wrapped, "w.pth"),
        (store_training, "w.ckpt"),
        (store_safetensors, "w.safetensors"),
    ],
)
def test_single_files(
    tmp_path: Path, store: Callable[[dict[str, Tensor], Path], None], name: str
) -> None:
    model = spread(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).bfloat16())
    patch, start = edited(model, "2.")
    path, out = tmp_path / name, tmp_path / f"new_{name}"
    store(start, path)
    untouched = path.read_bytes()
    assert patch.apply_to_file(path, out) == [out]
    assert path.read_bytes() == untouched
    patch.apply_to_file(path)
    for place in (path, out):
        with pytest.raises(PatchMismatch, match="already applied"):
            patch.apply_to_file(place)
    if store is not store_training:
        twin = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).bfloat16()
        load_weights(twin, out)
        assert same_bits(twin, model)
    patch.revert_file(path)
    with pytest.raises(PatchMismatch, match="already reverted"):
        patch.revert_file(path)
    if path.suffix == ".safetensors":
        assert path.read_bytes() == untouched


@pytest.mark.parametrize(("name", "other"), [("w.safetensors", "w2.pt"), ("w.pt", "w.safetensors")])
def test_a_file_of_another_format_is_not_written_under_its_name(
    tmp_path: Path, name: str, other: str
) -> None:
    patch, start = edited(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "1.")
    path = tmp_path / name
    (store_safetensors if path.suffix == ".safetensors" else torch.save)(start, path)
    with pytest.raises(ModelError, match="expected to end like the checkpoint"):
        patch.apply_to_file(path, tmp_path / other)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    deep = tmp_path / "new" / "folder" / name
    assert patch.apply_to_file(path, deep) == [deep]


def test_a_second_set_of_weights_must_fit_too(tmp_path: Path) -> None:
    model = spread(nn.Linear(4, 3))
    patch, start = edited(model)
    path = tmp_path / "w.pt"
    torch.save({"state_dict": start, "state_dict_ema": {n: t + 1 for n, t in start.items()}}, path)
    untouched = path.read_bytes()
    with pytest.raises(PatchMismatch, match=r"state_dict_ema.*would keep|would keep.*_ema"):
        patch.apply_to_file(path)
    assert path.read_bytes() == untouched
    torch.save({"state_dict": start, "state_dict_ema": start}, path)
    patch.apply_to_file(path)
    held = torch.load(path, weights_only=True)
    assert torch.equal(held["state_dict"]["weight"], model.weight)
    assert torch.equal(held["state_dict_ema"]["weight"], model.weight)


def test_both_formats_in_one_folder_are_edited(tmp_path: Path) -> None:
    model = spread(nn.Linear(4, 3))
    patch, start = edited(model)
    save_file(start, tmp_path / "model.safetensors")
    torch.save(start, tmp_path / "pytorch_model.bin")
    assert len(patch.apply_to_file(tmp_path)) == 2
    for name in ("model.safetensors", "pytorch_model.bin"):
        assert torch.equal(read_state_dict(tmp_path / name)["weight"], model.weight)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "tf_model.h5", "model_ema.pt"])
def test_weights_of_a_folder_that_are_not_read_are_refused(tmp_path: Path, name: str) -> None:
    patch, start = edited(spread(nn.Linear(4, 3)))
    save_file(start, tmp_path / "model.safetensors")
    for harmless in ("optimizer.pt", "adapter_model.safetensors", "training_args.bin"):
        (tmp_path / harmless).write_bytes(b"other")
    (tmp_path / name).write_bytes(b"old weights")
    untouched = contents(tmp_path)
    with pytest.raises(PatchMismatch, match=rf"found \['{name}'\], which would keep"):
        patch.apply_to_file(tmp_path)
    assert contents(tmp_path) == untouched
    patch.apply_to_file(tmp_path / "model.safetensors")
    patch.revert_file(tmp_path / "model.safetensors")
    (tmp_path / name).unlink()
    patch.apply_to_file(tmp_path)


def test_tied_tensors_in_files(tmp_path: Path) -> None:
    model = build_tied()
    torch.save(model.state_dict(), tmp_path / "both.pt")
    save_model(model, str(tmp_path / "one.safetensors"))
    copies = {name: t.clone() for name, t in model.state_dict().items()}
    save_file(copies, tmp_path / "copies.safetensors")
    patch, _ = edited(model)
    assert patch.entries["first.weight"].aliases == ("second.weight",)
    for name in ("both.pt", "one.safetensors", "copies.safetensors"):
        patch.apply_to_file(tmp_path / name)
        twin = build_tied()
        load_weights(twin, tmp_path / name)
        assert same_bits(twin, model)


def test_an_unnamed_copy_of_an_edited_tensor_is_refused(tmp_path: Path) -> None:
    model = spread(nn.Linear(4, 3))
    patch, start = edited(model)
    save_file({**start, "shadow": start["weight"].clone()}, tmp_path / "w.safetensors")
    with pytest.raises(PatchMismatch, match="copy named 'shadow'"):
        patch.apply_to_file(tmp_path / "w.safetensors")


class Bomb:
    """What a malicious pickle looks like."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_ever_run(tmp_path: Path) -> None:
    model = spread(nn.Linear(4, 3))
    patch, start = edited(model)
    path = tmp_path / "w.pt"
    torch.save({"state_dict": start, "note": Bomb(tmp_path / "ran")}, path)
    untouched = path.read_bytes()
    with pytest.raises(ModelError, match="needs no code to load"):
        patch.apply_to_file(path)
    with pytest.raises(ModelError, match="needs no code to load"):
        load_model("torchvision/resnet18", state_dict=path)
    assert not (tmp_path / "ran").exists()
    assert path.read_bytes() == untouched


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, (1 << 62).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"],
)
def test_broken_safetensors_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="a safetensors file"):
        open_checkpoint(path)


def test_a_header_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelError, match="outside the file"):
        open_checkpoint(tmp_path / "w.safetensors")


def test_other_things_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found nothing there"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(ModelError, match="to hold one of"):
        open_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ModelError, match="expected to hold a state dict"):
        open_checkpoint(tmp_path / "w.pt")
    index = tmp_path / "model.safetensors.index.json"
    for listed in ("../w.pt", "absent.safetensors"):
        index.write_text(f'{{"weight_map": {{"a": "{listed}"}}}}', "utf-8")
        with pytest.raises(ModelError, match="files beside it"):
            open_checkpoint(tmp_path)


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    patch, _ = edited(spread(nn.Linear(4, 3)))
    save_file({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(PatchMismatch, match="weight: other values"):
        patch.apply_to_file(tmp_path / "w.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(PatchMismatch, match="weight: absent"):
        patch.apply_to_file(tmp_path / "w.safetensors")


def test_moves_are_all_or_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"old {name}")
    (tmp_path / "new").write_text("new")
    with pytest.raises(FileNotFoundError):
        replace_all([(tmp_path / "new", tmp_path / "a"), (tmp_path / "absent", tmp_path / "b")])
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


def test_links_of_a_cache_stay_links(tmp_path: Path) -> None:
    model = spread(nn.Linear(4, 3))
    patch, start = edited(model)
    save_file(start, tmp_path / "blob.safetensors")
    link = tmp_path / "w.safetensors"
    link.symlink_to(tmp_path / "blob.safetensors")
    patch.apply_to_file(link)
    assert link.is_symlink()
    assert torch.equal(load_file(link)["weight"], model.weight)
