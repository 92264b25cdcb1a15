"""Models from strings: every form, no download, no code from files, no random heads."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from small_models import Tied, build_tied, same_bits, spread, timm_vit, vit
from test_files import Bomb
from torch import nn

from forgetkit import load_model
from forgetkit.errors import ModelError
from forgetkit.loading import origin_of
from forgetkit.origin import Origin
from forgetkit.weights import cast, load_weights

NOT_A_MODEL = 3


def not_a_model() -> int:
    return NOT_A_MODEL


def test_a_transformers_folder(tmp_path: Path) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert same_bits(loaded, model)
    assert not loaded.training
    assert origin_of(loaded) == Origin("transformers", str(tmp_path), folder=tmp_path)
    assert load_model(str(tmp_path), num_classes=5) is not loaded
    with pytest.raises(ModelError, match="num_classes is expected to be left out"):
        load_model(tmp_path, num_classes=6)


def test_a_classifier_without_head_weights_is_refused(tmp_path: Path) -> None:
    vit().vit.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="would start at random"):
        load_model(tmp_path)


def test_a_pickle_in_a_transformers_folder_is_not_run(tmp_path: Path) -> None:
    model = vit()
    model.config.save_pretrained(tmp_path)
    content = {**model.state_dict(), "note": Bomb(tmp_path / "ran")}
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="an image classifier of transformers"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_timm_folder(tmp_path: Path) -> None:
    model = timm_vit()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = load_model(tmp_path)
    assert same_bits(loaded, model)
    origin = origin_of(loaded)
    assert origin is not None
    assert (origin.form, origin.name, origin.folder) == ("timm", "test_vit", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a timm model"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_architectures_with_a_state_dict(tmp_path: Path) -> None:
    tv = spread(torchvision.models.mobilenet_v3_small(num_classes=4))
    torch.save({"module." + name: t for name, t in tv.state_dict().items()}, tmp_path / "tv.pth")
    loaded = load_model(
        "torchvision/mobilenet_v3_small", state_dict=tmp_path / "tv.pth", num_classes=4
    )
    assert same_bits(loaded, tv)
    with pytest.raises(ModelError, match=r"of shape \(4,\) instead of \(1000,\).*pass num_classes"):
        load_model("torchvision/mobilenet_v3_small", state_dict=tmp_path / "tv.pth")
    small = spread(timm.create_model("test_vit", num_classes=3))
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    again = load_model("timm/test_vit", state_dict=tmp_path / "small.safetensors", num_classes=3)
    assert same_bits(again, small)


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    for source in ("torchvision/resnet18", "timm/test_vit", "google/vit-base-patch16-224"):
        with pytest.raises(ModelError, match="allow_download=True"):
            load_model(source)


def test_random_heads_only_when_asked_for() -> None:
    with pytest.raises(ModelError, match="would start at random"):
        load_model("torchvision/resnet18", num_classes=3, allow_download=True)
    assert load_model("timm/test_vit", num_classes=3, untrained=True).num_classes == 3
    fresh = load_model("torchvision/mobilenet_v3_small", untrained=True)
    assert origin_of(fresh) == Origin("torchvision", "torchvision/mobilenet_v3_small",
                                      "mobilenet_v3_small")  # fmt: skip


def test_an_allowed_download_goes_through_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    asked: list[tuple[str, bool]] = []

    def fetch(repo: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not any(pattern.endswith((".py", ".pkl")) for pattern in allow_patterns)
        asked.append((repo, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert same_bits(load_model("some/vit", allow_download=True), model)
    assert same_bits(load_model("some/vit"), model)  # now in the cache
    assert asked == [("some/vit", False), ("some/vit", True)]


def test_factories(tmp_path: Path) -> None:
    model = load_model("small_models:build_tied")
    assert isinstance(model, Tied)
    assert same_bits(model, build_tied())
    origin = origin_of(model)
    assert origin is not None
    assert origin.form == "factory"
    with torch.no_grad():
        model.first.weight.zero_()
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    assert same_bits(
        load_model("small_models:Tied", state_dict=tmp_path / "w.safetensors"), model
    )  # fmt: skip


def wants_a_width(width: int) -> nn.Module:
    return nn.Linear(width, 2)


@pytest.mark.parametrize(
    ("source", "weights"), [(None, None), (nn.Linear(2, 2), None), ("torchvision/resnet18", {})]
)
def test_what_is_no_place_to_load_from_is_said(source: object, weights: object) -> None:
    with pytest.raises(ModelError, match="is expected to be a string or a path"):
        load_model(source, state_dict=weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "phrase"),
    [
        ("no_such_package:build", "No module named 'no_such_package'"),
        ("small_models:absent", "no attribute 'absent'"),
        ("test_loading:not_a_model", "found int"),
        ("test_loading:wants_a_width", "raised TypeError.*'width'"),
        ("torchvision/resnet19", "unknown name"),
        ("./nowhere/at/all", "found no such folder"),
        ("some/vit", "found no such folder and no copy"),
        ("timm/resnet51", "architecture of timm.*did you mean timm/resnet5"),
    ],
)
def test_what_cannot_be_found_is_said(source: str, phrase: str) -> None:
    with pytest.raises(ModelError, match=phrase) as caught:
        load_model(source)
    assert "is expected to" in str(caught.value)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="holds weights only"):
        load_model(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"no config\.json of"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="a JSON file"):
        load_model(tmp_path)


def test_a_folder_cannot_name_what_is_imported(tmp_path: Path) -> None:
    record = {"form": "factory", "name": "small_models:build_tied"}
    (tmp_path / "forgetkit.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="weights of small_models:build_tied"):
        load_model(tmp_path)


def test_origins_do_not_keep_models_alive() -> None:
    import weakref

    model: nn.Module | None = load_model("small_models:build_tied")
    assert model is not None
    assert origin_of(nn.Linear(1, 1)) is None
    assert "origin" not in " ".join(vars(model)).lower()
    watch = weakref.ref(model)
    model = None
    gc.collect()
    assert watch() is None


def test_a_tied_tensor_takes_one_value(tmp_path: Path) -> None:
    held = {name: t.clone() for name, t in build_tied().state_dict().items()}
    held["second.weight"] += 1
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(
        ModelError, match=r"different values of \['first.weight', 'second.weight'\]"
    ):
        load_weights(build_tied(), tmp_path / "w.pt")


@pytest.mark.parametrize("half", [True, False])
def test_unsaved_buffers_go_along_with_a_model_that_was_cast_only(half: bool) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("grid", torch.ones(2, dtype=torch.float64), persistent=False)
    model.register_buffer("scale", torch.ones(2), persistent=False)
    kept = torch.bfloat16 if half else torch.float32
    cast(model, dict.fromkeys(model.state_dict(), kept))
    assert model.weight.dtype == model.get_buffer("scale").dtype == kept
    assert model.get_buffer("grid").dtype == torch.float64
