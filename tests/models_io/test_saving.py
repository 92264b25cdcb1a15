"""Saving: the model's own form, the same bits back, nothing overwritten, nothing left half done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from peft import LoraConfig, get_peft_model
from small_models import same_bits, spread, timm_vit, vit
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from forgetkit import load_model
from forgetkit.errors import ModelError
from forgetkit.fingerprint import model_tensors
from forgetkit.model_card import model_card
from forgetkit.saving import push_to_hub, refuse_in_use, save_model, unwrapped
from forgetkit.torchvision_models import name_of
from forgetkit.weights import load_weights


def record_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "forgetkit.json").read_text())
    return content


def test_transformers(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    vit().save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "preprocessor_config.json").write_text('{"size": 16}')
    model = load_model(tmp_path / "in")
    files = save_model(model, tmp_path / "out", card="# Card\n")
    assert {p.name for p in files} == {
        "README.md", "config.json", "forgetkit.json", "model.safetensors",
        "preprocessor_config.json",
    }  # fmt: skip
    assert record_of(tmp_path / "out")["form"] == "transformers"
    assert same_bits(load_model(tmp_path / "out"), model)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_byobnet"])
def test_timm(tmp_path: Path, name: str) -> None:
    model = spread(timm.create_model(name, num_classes=6))
    state = torch.get_rng_state()
    save_model(model, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert record_of(tmp_path / "out")["form"] == "timm"
    loaded = load_model(tmp_path / "out")
    assert same_bits(loaded, model)
    x = torch.ones(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_a_timm_model_with_options(tmp_path: Path) -> None:
    model = timm_vit()
    save_model(model, tmp_path / "out")
    assert same_bits(load_model(tmp_path / "out"), model)


def test_a_timm_model_that_was_altered_is_no_timm_model(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=6)
    width = model.get_parameter("fc.weight").shape[1]
    model.fc = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 6))
    spread(model)
    save_model(model, tmp_path / "out")
    assert record_of(tmp_path / "out")["form"] == "class"
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(ModelError, match="weights of timm"):
        load_model(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "regnet_x_400mf"]
)
def test_torchvision(tmp_path: Path, name: str) -> None:
    model = spread(torchvision.models.get_model(name, num_classes=4))
    state = torch.get_rng_state()
    save_model(model, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    record = record_of(tmp_path / "out")
    assert (record["form"], record["name"], record["num_classes"]) == ("torchvision", name, 4)
    assert same_bits(load_model(tmp_path / "out"), model)


def of_two_kinds(model: nn.Module) -> nn.Module:
    """A body in half precision and a head in double."""
    model.bfloat16()
    head = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))
    head.double()
    return model


@pytest.mark.parametrize("kind", [nn.Module.double, nn.Module.bfloat16, of_two_kinds])
@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers", "own"])
def test_dtypes_come_back(
    tmp_path: Path, library: str, kind: Callable[[nn.Module], nn.Module]
) -> None:
    model: nn.Module
    if library == "timm":
        model = timm.create_model("test_vit", num_classes=4)
    elif library == "transformers":
        model = vit()
    elif library == "own":
        model = load_model("small_models:build_tied")
    else:
        model = torchvision.models.mobilenet_v3_small(num_classes=4)
    kind(model)
    spread(model)
    save_model(model, tmp_path / "out")
    if library == "own":
        weights = tmp_path / "out" / "model.safetensors"
        loaded = load_model("small_models:build_tied", state_dict=weights)
        assert loaded.get_parameter("first.weight") is loaded.get_parameter("second.weight")
    else:
        loaded = load_model(tmp_path / "out")
    assert record_of(tmp_path / "out")["form"] == ("factory" if library == "own" else library)
    assert same_bits(loaded, model)


class Turned(nn.Linear):
    """A layer with buffers that no file holds."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("scale", torch.ones(2), persistent=False)
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64), persistent=False)


def test_buffers_that_no_file_holds_follow(tmp_path: Path) -> None:
    model = Turned()
    model.scale = model.get_buffer("scale").bfloat16()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    save_model(model, tmp_path / "out")
    twin = Turned()
    load_weights(twin, tmp_path / "out", as_stored=True)
    assert {name: b.dtype for name, b in twin.named_buffers()} == {
        "scale": torch.bfloat16, "phase": torch.complex64
    }  # fmt: skip


def test_weights_of_ones_own_are_cast_to_the_model(tmp_path: Path) -> None:
    held = {
        name: t.half() for name, t in load_model("small_models:build_tied").state_dict().items()
    }
    torch.save(held, tmp_path / "w.pt")
    loaded = load_model("small_models:build_tied", state_dict=tmp_path / "w.pt")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def without_pool(model: nn.Module) -> nn.Module:
    model.maxpool = nn.Identity()
    return model


def of_its_own_forward(model: nn.Module) -> nn.Module:
    model.forward = lambda x: 2 * type(model).forward(model, x)
    return model


def of_other_epsilon(model: nn.Module) -> nn.Module:
    model.bn1.eps = 0.1  # type: ignore[union-attr]  # its class is known
    return model


def for_hooks(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    return model


ALTERED = {
    "no pool": lambda: without_pool(torchvision.models.resnet18(num_classes=4)),
    "no pool in timm": lambda: without_pool(timm.create_model("resnet10t", num_classes=4)),
    "dilated": lambda: torchvision.models.resnet50(
        num_classes=4, replace_stride_with_dilation=[False, True, True]
    ),
    "forward": lambda: of_its_own_forward(torchvision.models.resnet18(num_classes=4)),
    "attribute": lambda: of_other_epsilon(timm.create_model("resnet10t", num_classes=4)),
}
UNALTERED = {
    "torchvision": lambda: torchvision.models.mobilenet_v3_small(num_classes=4, dropout=0.5),
    "timm": lambda: timm.create_model(
        "test_vit", num_classes=4, drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1
    ),
    "torchvision, made ready for hooks": lambda: for_hooks(
        torchvision.models.resnet18(num_classes=4)
    ),
    "torchvision, with less memory": lambda: torchvision.models.densenet121(
        num_classes=4, memory_efficient=True
    ),
    "timm, with stochastic depth": lambda: timm.create_model(
        "resnet18", num_classes=4, drop_path_rate=0.1
    ),
    "timm, synchronised": lambda: convert_sync_batchnorm(
        timm.create_model("efficientnet_lite0", num_classes=4)
    ),
    "torchvision, synchronised": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(
        torchvision.models.resnet18(num_classes=4)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERED)
def test_a_network_altered_without_new_tensors_is_no_known_one(tmp_path: Path, name: str) -> None:
    save_model(ALTERED[name](), tmp_path / "out")  # type: ignore[no-untyped-call]  # a table
    assert record_of(tmp_path / "out")["form"] == "class"
    with pytest.raises(ModelError, match="says how to build the model"):
        load_model(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", UNALTERED)
def test_what_differs_in_training_alone_may_differ(tmp_path: Path, name: str) -> None:
    model = UNALTERED[name]().eval()  # type: ignore[no-untyped-call]  # a table
    save_model(model, tmp_path / "out")
    assert record_of(tmp_path / "out")["form"] == name.partition(",")[0]
    x = torch.ones(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "out")(x), model(x))


def test_the_class_count_that_a_model_states_may_be_that_of_an_earlier_head() -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
        model.heads.head = nn.Linear(768, 4)
    assert model.num_classes == 1000
    assert name_of(model) == ("vit_b_16", 4)


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    model = load_model("small_models:build_tied")
    with torch.no_grad():
        model.get_parameter("first.weight").add_(1)
    save_model(model, tmp_path / "out")
    record = record_of(tmp_path / "out")
    assert (record["form"], record["name"]) == ("factory", "small_models:build_tied")
    weights = tmp_path / "out" / "model.safetensors"
    assert same_bits(load_model("small_models:build_tied", state_dict=weights), model)
    save_model(nn.Linear(2, 2), tmp_path / "plain")
    assert record_of(tmp_path / "plain")["class"] == "torch.nn.modules.linear.Linear"


class Counting(nn.Linear):
    """A module that keeps more than tensors."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.seen = 3

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def test_what_is_no_tensor_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = spread(nn.Sequential(Counting(), nn.Linear(2, 2)))
    save_model(model, tmp_path / "out")
    assert record_of(tmp_path / "out")["not_saved"] == ["0._extra_state"]
    assert "0._extra_state" in caplog.text
    twin = nn.Sequential(Counting(), nn.Linear(2, 2))
    load_weights(twin, tmp_path / "out")
    assert same_bits(twin, model)


def test_transformers_cannot_leave_it_out(tmp_path: Path) -> None:
    model = vit()
    model.classifier = Counting()
    with pytest.raises(ModelError, match=r"tensors only.*classifier\._extra_state"):
        save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Autoencoder(nn.Module):
    """Pairs of tensors: views of one memory, parts of one, conjugates of each other, empty ones."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, 3))
        self.up = nn.Parameter(self.down.data.t())
        self.part, self.rest = map(nn.Parameter, torch.randn(2, 4).unbind())
        self.register_buffer("phase", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("turned", self.get_buffer("phase").conj())
        self.none, self.nothing = nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.empty(0))


def test_views_of_one_memory_are_saved_each(tmp_path: Path) -> None:
    model = spread(Autoencoder())
    save_model(model, tmp_path / "out")
    twin = Autoencoder()
    load_weights(twin, tmp_path / "out")
    assert same_bits(twin, model)


def test_wrappers_are_left_out(tmp_path: Path) -> None:
    model = spread(nn.Sequential(nn.Linear(2, 2)))
    compiled = torch.compile(nn.DataParallel(model))
    assert isinstance(compiled, nn.Module)
    assert unwrapped(compiled) is model
    save_model(compiled, tmp_path / "out")
    twin = nn.Sequential(nn.Linear(2, 2))
    load_weights(twin, tmp_path / "out")
    assert same_bits(twin, model)
    with pytest.raises(ModelError, match="found str"):
        unwrapped("model")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # inside peft
def test_peft_saves_the_adapter_and_refuses_edits_outside(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base")
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    )
    edited = [name for name, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for name in edited:
            model.get_parameter(name).add_(0.5)
    save_model(model, tmp_path / "out", changed=edited)
    assert record_of(tmp_path / "out")["form"] == "peft"
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert same_bits(load_model(tmp_path / "out"), model.eval())
    save_model(model.bfloat16(), tmp_path / "half")
    assert same_bits(load_model(tmp_path / "half"), model)
    model.float()
    frozen = next(n for n in model_tensors(model) if n.endswith("layernorm.weight"))
    with pytest.raises(ModelError, match="merge_and_unload"):
        save_model(model, tmp_path / "other", changed=[*edited, frozen])
    assert not (tmp_path / "other").exists()


def test_foreign_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    model = spread(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="overwrite=True"):
        save_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 1
    save_model(model, tmp_path, overwrite=True)
    twin = nn.Linear(2, 2)
    load_weights(twin, tmp_path)
    assert same_bits(twin, model)


def test_an_earlier_save_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_model(vit(), out, card="old")
    (out / "notes.txt").write_text("mine")
    model = spread(nn.Linear(2, 2))
    save_model(model, out)
    assert {p.name for p in out.iterdir()} == {"forgetkit.json", "model.safetensors", "notes.txt"}
    (out / "README.md").write_text("mine")
    with pytest.raises(ModelError, match=r"found \['README.md'\] in it, which forgetkit did not"):
        save_model(model, out, card="new")
    assert (out / "README.md").read_text() == "mine"
    save_model(model, out)  # needs no such file
    assert (out / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "README.md",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin.index.json",
    ],
)
def test_what_would_be_in_the_way_of_a_save_is_known_before(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    save_model(nn.Linear(2, 2), out)
    refuse_in_use(out)
    (out / name).write_text("mine")
    with pytest.raises(ModelError, match="did not write"):
        refuse_in_use(out)
    refuse_in_use(out, overwrite=True)


def test_a_processor_beside_an_earlier_save_is_not_in_the_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_model(nn.Linear(2, 2), out)
    (out / "preprocessor_config.json").write_text("{}")
    save_model(nn.Linear(2, 2), out)
    assert (out / "preprocessor_config.json").read_text() == "{}"


def test_no_second_set_of_weights_stays_behind(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="keep what was forgotten"):
        save_model(nn.Linear(2, 2), tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_record_cannot_point_outside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_model(nn.Linear(2, 2), out)
    (tmp_path / "precious").write_text("mine")
    record = record_of(out)
    record["files"] = ["../precious", "model.safetensors", "forgetkit.json"]
    (out / "forgetkit.json").write_text(json.dumps(record))
    save_model(nn.Linear(2, 2), out)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    model = spread(nn.Linear(2, 2))
    save_model(model, out)
    held = (out / "model.safetensors").read_bytes()

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("forgetkit.tensor_writing.save_file", crash)
    for target in (out, tmp_path / "fresh"):
        with pytest.raises(KeyboardInterrupt):
            save_model(nn.Linear(2, 2), target)
    assert (out / "model.safetensors").read_bytes() == held
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_bad_targets_and_models(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="found a file"):
        save_model(nn.Linear(2, 2), tmp_path / "file")
    with pytest.raises(ModelError, match="meta tensor"):
        save_model(nn.Linear(2, 2, device="meta"), tmp_path / "meta")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_push_to_hub_uploads_a_folder_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_vit()
    calls: list[object] = []

    def create(self: object, name: str, *, exist_ok: bool, private: bool) -> object:
        calls.append((name, exist_ok, private))

        class Address(str):
            repo_id = "me/forgetful"

        return Address("https://huggingface.co/me/forgetful")

    def upload(self: object, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert (folder_path / "README.md").read_text() == "# Card"
        calls.append((repo_id, same_bits(load_model(folder_path), model)))

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    address = push_to_hub(model, "forgetful", "# Card", private=True)
    assert address == "https://huggingface.co/me/forgetful"
    assert calls == [("forgetful", True, True), ("me/forgetful", True)]


class Unreached(Exception):
    """What an HTTP library raises, of no kind that Python knows."""


def test_push_to_hub_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(self: object, name: str, **_: object) -> object:
        raise Unreached("no route") if name == "me/model" else ValueError("no name")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    model = nn.Linear(2, 2)
    for name in ("/tmp/model", "./model", "~/model"):  # noqa: S108  never written
        with pytest.raises(ModelError, match=r"found a path. Write to a folder with save\(\)"):
            push_to_hub(model, name)
    with pytest.raises(ModelError, match=r"found ValueError: no name. .*log in with"):
        push_to_hub(model, "me//model")
    with pytest.raises(ModelError, match=r"hub that answers; found Unreached: no route. .*save"):
        push_to_hub(model, "me/model")


def test_model_card() -> None:
    card = model_card(
        {"method": "lau", "goal": {"classes": [3]}},
        {"forget": {"accuracy": 1.0, "by_class": {"3": 1.0}, "samples": 10}, "test": 0.75},
        {"forget": {"accuracy": 0.0, "by_class": {"3": 0.0}, "samples": 10}},
        "No membership inference was run.",
        library="timm",
    )
    assert card.startswith('---\nlibrary_name: "timm"\ntags:\n- machine-unlearning')
    assert '| goal | `{"classes": [3]}` |' in card
    assert "| forget | accuracy | 1.0000 | 0.0000 |" in card
    assert "| test | accuracy | 0.7500 | not measured |" in card
    assert "### forget, by class\n\n| class | before | after |\n| --- | --- | --- |\n| 3 |" in card
    assert card.endswith("## Limits\n\nNo membership inference was run.\n")
    positions = {"goal": "instances", "positions": list(range(100_000))}
    many = model_card({"goal": positions}, {}, {}, "Nothing was tested.")
    assert '"positions": "0, 1, 2, 3, 4, 5, 6, 7 and 99992 more"' in many
    assert "No accuracy was measured." in model_card({}, {}, {}, "Nothing was tested.")
    with pytest.raises(ValueError, match="limits is expected"):
        model_card({}, {}, {}, " ")


def test_the_card_marks_what_is_0_by_construction() -> None:
    before, after = ({"forget": {"accuracy": a, "loss": 1.0}, "test": a} for a in (1.0, 0.0))
    card = model_card({}, before, after, "None was tested.", masked=["forget"])
    assert "| forget | accuracy | 1.0000 | 0.0000 (head masked) |" in card
    assert "| forget | loss | 1.0000 | 1.0000 |" in card
    assert "| test | accuracy | 1.0000 | 0.0000 |" in card
    assert "head masked: accuracy is 0 by construction" in card


@pytest.mark.slow
def test_nothing_heavy_is_imported_early() -> None:
    import subprocess
    import sys

    code = (
        "import sys, forgetkit.saving, forgetkit.loading, forgetkit.patch\n"
        "heavy = {'timm', 'transformers', 'torchvision', 'peft', 'rich', 'huggingface_hub'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
