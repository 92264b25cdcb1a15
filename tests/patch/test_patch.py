"""A patch is exact in every dtype, checked before it writes, and a file that cannot run code."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forgetkit.errors import BadHyperparameter, ModelError, PatchMismatch
from forgetkit.fingerprint import bits_of, fingerprint, model_tensors
from forgetkit.patch import Patch

REQUEST = {"goal": {"classes": [3]}, "method": "lau", "seed": 0}


class Zoo(nn.Module):
    """One tensor of every awkward kind, a tie, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 4, bias=False)
        self.twin = self.head
        self.narrow = nn.Parameter(torch.randn(3, 5).bfloat16())
        self.scalar = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("turned", torch.randn(3, 2, dtype=torch.complex64).t().conj())
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def edit(self) -> None:
        with torch.no_grad():
            self.head.weight.mul_(1.1)
            self.narrow.add_(0.3)
            self.narrow[0, 0] = float("nan")
            self.scalar.fill_(-0.0)
            self.get_buffer("mask").logical_not_()
            self.get_buffer("turned").mul_(2)
            self.norm.num_batches_tracked.add_(7)  # type: ignore[union-attr]


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model_tensors(model).items()}


def made() -> tuple[Zoo, Zoo, Patch]:
    """A model before, one after, and the patch between."""
    before, after = Zoo(), Zoo()
    start = copied(after)
    after.edit()
    return before, after, Patch.between(start, model_tensors(after), REQUEST)


def same(one: nn.Module, other: nn.Module) -> bool:
    return fingerprint(model_tensors(one)) == fingerprint(model_tensors(other))


def test_it_holds_exactly_what_changed() -> None:
    _, _, patch = made()
    assert set(patch.names) == {
        "head.weight", "narrow", "scalar", "mask", "turned", "norm.num_batches_tracked"
    }  # fmt: skip
    assert patch.nbytes == 16 * 4 + 15 * 2 + 8 + 3 + 6 * 8 + 8
    assert patch.request == REQUEST
    assert patch.entries["head.weight"].aliases == ("twin.weight",)
    assert not patch.entries["body.weight"].changed


def test_apply_and_revert_give_the_same_bits_in_the_same_storage() -> None:
    before, after, patch = made()
    places = {name: (id(t), t.data_ptr()) for name, t in model_tensors(before).items()}
    original = fingerprint(model_tensors(before))
    patch.apply(before)
    assert same(before, after)
    assert {n: (id(t), t.data_ptr()) for n, t in model_tensors(before).items()} == places
    patch.revert(before)
    assert fingerprint(model_tensors(before)) == original


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5)])
def test_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    old = (torch.randn(shape, generator=generator) * 9).to(dtype)
    new = (torch.randn(shape, generator=generator) * 9 + 20).to(dtype)
    if dtype is torch.bool:
        old, new = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
    model = nn.Module()
    model.register_buffer("value", old.clone())
    patch = Patch.between({"value": old}, {"value": new}, REQUEST)
    patch.apply(model)
    assert torch.equal(model.get_buffer("value"), new)
    patch.revert(model)
    assert torch.equal(model.get_buffer("value"), old)
    assert bool(patch.names) == (0 not in shape)


def test_subtraction_would_not_have_been_exact() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(4096).bfloat16(), torch.randn(4096).bfloat16()
    assert not torch.equal(new - (new - old), old)
    model = nn.Module()
    model.register_buffer("value", new.clone())
    Patch.between({"value": old}, {"value": new}, REQUEST).revert(model)
    assert torch.equal(model.get_buffer("value"), old)


def test_applying_twice_and_reverting_twice_are_refused() -> None:
    before, _, patch = made()
    patch.apply(before)
    with pytest.raises(PatchMismatch, match="already applied"):
        patch.apply(before)
    patch.revert(before)
    with pytest.raises(PatchMismatch, match="already reverted"):
        patch.revert(before)


def change_unrelated_tensor(model: Zoo) -> None:
    with torch.no_grad():
        model.body.weight[0, 0] += 1


def change_one_bit(model: Zoo) -> None:
    bits = bits_of(model.head.weight)
    bits[0] ^= 1


def change_shape(model: Zoo) -> None:
    model.body = nn.Linear(6, 5)


def change_dtype(model: Zoo) -> None:
    model.bfloat16()


def drop_tensor(model: Zoo) -> None:
    del model.scalar


@pytest.mark.parametrize(
    ("alter", "phrase"),
    [
        (change_unrelated_tensor, "body.weight: other values"),
        (change_one_bit, "head.weight: other values"),
        (change_shape, r"body.weight: shape \(5, 6\) instead of \(4, 6\)"),
        (change_dtype, "dtype bfloat16 instead of float32"),
        (drop_tensor, "scalar: absent"),
    ],
)
@pytest.mark.parametrize("forward", [True, False])
def test_another_model_is_refused_untouched(
    alter: Callable[[Zoo], None], phrase: str, forward: bool
) -> None:
    before, after, patch = made()
    target = before if forward else after
    alter(target)
    held = fingerprint(model_tensors(target))
    with pytest.raises(PatchMismatch, match=phrase) as caught:
        (patch.apply if forward else patch.revert)(target)
    assert "is expected to hold" in str(caught.value)
    assert fingerprint(model_tensors(target)) == held
    assert patch.state_of(target) == "other"


def test_state_of_reads_without_writing() -> None:
    before, after, patch = made()
    assert patch.state_of(before) == "before"
    assert patch.state_of(after) == "after"


def test_a_stack_is_undone_in_reverse_order_only() -> None:
    model = Zoo()
    original = fingerprint(model_tensors(model))
    patches = []
    for name in ("body.weight", "narrow"):  # disjoint tensors, so only order tells them apart
        start = copied(model)
        with torch.no_grad():
            model_tensors(model)[name].add_(1)
        patches.append(Patch.between(start, model_tensors(model), REQUEST))
    first, second = patches
    with pytest.raises(PatchMismatch, match="newest first"):
        first.revert(model)
    second.revert(model)
    first.revert(model)
    assert fingerprint(model_tensors(model)) == original
    with pytest.raises(PatchMismatch):
        second.apply(model)
    first.apply(model)
    second.apply(model)


def test_a_write_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetkit.patch import core

    before, _, patch = made()
    held = fingerprint(model_tensors(before))
    real, calls = core._write, 0

    def interrupted(tensor: Tensor, bits: Tensor) -> None:
        nonlocal calls
        calls += 1
        real(tensor, bits)
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(core, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch.apply(before)
    assert fingerprint(model_tensors(before)) == held


def test_a_tensor_that_refuses_writing_rolls_back_the_others() -> None:
    model = nn.Module()
    model.register_buffer("first", torch.zeros(2))
    model.register_buffer("second", torch.zeros(1).expand(2))  # copy_ refuses such memory
    old = {"first": torch.zeros(2), "second": torch.zeros(2)}
    new = {"first": torch.ones(2), "second": torch.tensor([1.0, 2.0])}
    patch = Patch.between(old, new, REQUEST)
    with pytest.raises(RuntimeError, match="single memory location"):
        patch.apply(model)
    assert model.get_buffer("first").tolist() == [0.0, 0.0]


def test_wrappers_do_not_matter() -> None:
    before, after, patch = made()
    patch.apply(nn.DataParallel(before))
    assert same(before, after)
    compiled = torch.compile(before)
    assert isinstance(compiled, nn.Module)
    patch.revert(compiled)
    assert same(before, Zoo())
    start = copied(nn.DataParallel(before))
    assert Patch.between(start, model_tensors(after), REQUEST).names == patch.names


def test_tied_names_may_be_missing_on_either_side() -> None:
    before, after, _ = made()
    start = copied(before)
    del start["twin.weight"]
    patch = Patch.between(start, model_tensors(after), REQUEST)
    assert patch.names.count("head.weight") == 1
    assert "twin.weight" not in patch.names
    patch.apply(before)
    assert before.twin is before.head
    assert same(before, after)


def test_renamed_tensors_are_found_by_content() -> None:
    before, after, patch = made()
    renamed = nn.ModuleDict({"inner": before})
    patch.apply(renamed)
    assert same(before, after)
    patch.revert(renamed)


def test_equal_tensors_under_other_names_are_ambiguous() -> None:
    old = {"a": torch.zeros(3), "b": torch.zeros(3)}
    new = {"a": torch.ones(3), "b": torch.full((3,), 2.0)}
    patch = Patch.between(old, new, REQUEST)
    model = nn.Module()
    model.register_buffer("x", torch.zeros(3))
    model.register_buffer("y", torch.zeros(3))
    with pytest.raises(PatchMismatch, match="several tensors of other names"):
        patch.apply(model)
    assert not model.get_buffer("x").any()


def test_file_round_trip(tmp_path: Path) -> None:
    before, after, patch = made()
    path = patch.save(tmp_path / "edit.safetensors")
    loaded = Patch.load(path)
    assert loaded.names == patch.names
    assert loaded.entries == patch.entries
    assert loaded.request == patch.request
    loaded.apply(before)
    assert same(before, after)
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]


def test_an_empty_patch_is_a_patch(tmp_path: Path) -> None:
    model = Zoo()
    patch = Patch.load(Patch.between(copied(model), copied(model), {}).save(tmp_path / "p"))
    assert patch.nbytes == 0
    patch.apply(model)
    patch.revert(model)
    assert same(model, Zoo())


def test_a_pickle_is_not_a_patch(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    path.write_bytes(pickle.dumps({"format": "forgetkit.patch/1"}))
    with pytest.raises(PatchMismatch, match="something else"):
        Patch.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(PatchMismatch, match=r"forgetkit\.patch/1"):
        Patch.load(path)
    with pytest.raises(FileNotFoundError):
        Patch.load(tmp_path / "absent")


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stored:
        metadata = dict(stored.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def flip_bit(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["narrow"][0] ^= 4


def drop_delta(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del tensors["narrow"]


def shorten_delta(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["narrow"] = tensors["narrow"][:-2].clone()


def wrong_digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    records = json.loads(metadata["tensors"])
    records["narrow"][2] = "00"
    metadata["tensors"] = json.dumps(records)


def unknown_dtype(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    records = json.loads(metadata["tensors"])
    records["narrow"][0] = "nn"
    metadata["tensors"] = json.dumps(records)


def no_request(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del metadata["request"]


@pytest.mark.parametrize(
    "damage", [drop_delta, shorten_delta, wrong_digest, unknown_dtype, no_request]
)
def test_a_damaged_file_is_refused_on_loading(
    tmp_path: Path, damage: Callable[[dict[str, Tensor], dict[str, str]], None]
) -> None:
    path = made()[2].save(tmp_path / "edit.safetensors")
    rewrite(path, damage)
    with pytest.raises(PatchMismatch, match="damaged"):
        Patch.load(path)


def test_a_flipped_bit_is_noticed_before_writing(tmp_path: Path) -> None:
    before, _, patch = made()
    path = patch.save(tmp_path / "edit.safetensors")
    rewrite(path, flip_bit)
    with pytest.raises(PatchMismatch, match="damaged"):
        Patch.load(path).apply(before)
    assert same(before, Zoo())


@pytest.mark.parametrize(
    ("before", "after", "phrase"),
    [
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, "before"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2).double()}, "float64"),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, "only"),
        ({"a": torch.zeros(2)}, {"a": torch.ones(2), "b": torch.zeros(2)}, "only after"),
        ({"a": torch.zeros(2), "b": torch.ones(2)}, {"a": torch.ones(2)}, "only before"),
    ],
)
def test_two_models_make_no_patch(
    before: dict[str, Tensor], after: dict[str, Tensor], phrase: str
) -> None:
    with pytest.raises(PatchMismatch, match=phrase):
        Patch.between(before, after, REQUEST)


def test_bad_requests_and_tensors_are_named() -> None:
    some = {"a": torch.zeros(1)}
    with pytest.raises(BadHyperparameter, match="request is expected"):
        Patch.between(some, some, {"x": torch.zeros(1)})
    with pytest.raises(BadHyperparameter, match="found list"):
        Patch.between(some, some, [])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="meta tensor"):
        Patch.between({"a": torch.empty(1, device="meta")}, some, {})
    with pytest.raises(ModelError, match="sparse"):
        Patch.between({"a": torch.zeros(1).to_sparse()}, some, {})
    with pytest.raises(ModelError, match="expected to be a tensor"):
        Patch.between({"a": [1]}, some, {})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match=r"torch\.nn\.Module"):
        Patch.between(some, some, {}).apply("model")  # type: ignore[arg-type]


def test_copies_handed_out_by_a_hook_are_refused() -> None:
    model = nn.Linear(2, 2)

    def hand_out_copies(
        module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, object]
    ) -> None:
        state["weight"] = state["weight"].clone()

    patch = Patch.between(copied(model), copied(model), {})
    model.register_state_dict_post_hook(hand_out_copies)
    with pytest.raises(ModelError, match="state-dict hook"):
        patch.apply(model)


def test_it_prints() -> None:
    _, _, patch = made()
    assert repr(patch) == "Patch(lau: 6 of 13 tensors changed, 161 B)"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(patch)
    shown = console.export_text()
    assert "head.weight" in shown
    assert "seed: 0" in shown


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter() -> None:
    before, after, patch = made()
    before.cuda()
    patch.apply(before)
    assert same(before, after)
    patch.revert(before)
    assert same(before.cpu(), Zoo())
