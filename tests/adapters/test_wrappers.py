from __future__ import annotations

import io
import warnings

import pytest
import torch
from head_zoo import CLASSES, Net, heads, picture
from torch import nn

from forgetkit.adapting import adapt, class_count_hint, unwrap
from forgetkit.dryrun.sweep.checking import trace
from forgetkit.inspection import inspect_model


def check(model: nn.Module, name: str) -> None:
    view = adapt(model, picture())
    assert view.head_name == name
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3))
        torch.testing.assert_close(view.head(features), logits, rtol=1e-6, atol=1e-6)


def test_compiled_models_are_run_as_written() -> None:
    model = Net().eval()
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    with torch.no_grad():
        compiled(picture())
    assert unwrap(compiled) is model
    check(compiled, "last")
    model.compile(backend="eager")
    with torch.no_grad():
        model(picture())
    check(model, "last")
    assert not model.get_submodule("last")._forward_pre_hooks


def test_data_parallel_is_taken_off() -> None:
    model = Net().eval()
    assert unwrap(nn.DataParallel(model)) is model
    check(nn.DataParallel(model), "last")


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_is_taken_off() -> None:
    model = Net().eval()
    check(nn.parallel.DistributedDataParallel(model), "last")


def test_peft_heads_are_one_cut_with_two_factors() -> None:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["last"], init_lora_weights=False)
        model = peft.get_peft_model(Net(), config).eval()
    view = adapt(model, picture())
    assert view.head_names == [
        "base_model.model.last.base_layer",
        "base_model.model.last.lora_B.default",
    ]
    names = {row.name.rpartition("last.")[2] for row in view.rows(1)}
    assert names == {"base_layer.weight", "base_layer.bias", "lora_B.default.weight"}
    assert view.separable
    assert view.linear


def test_peft_saved_heads_are_the_active_copy() -> None:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["body.conv"], modules_to_save=["last"])
        model = peft.get_peft_model(Net(), config).eval()
    check(model, "base_model.model.last.modules_to_save.default")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_part_before_the_head_is_one_step() -> None:
    model = Net().eval()
    model.body = torch.jit.script(model.body)
    check(model, "last")


def test_accelerate_offload_splits_but_is_read_only() -> None:
    from accelerate import cpu_offload

    from forgetkit.errors import CannotSplitModel

    model = Net().eval()
    cpu_offload(model, execution_device=torch.device("cpu"))
    view = adapt(model, picture())
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3))
        torch.testing.assert_close(view.head(features), logits)
    with pytest.raises(CannotSplitModel, match="offload"):
        view.rows(0)


def test_inputs_stay_where_they_are_when_all_weights_are_offloaded() -> None:
    from accelerate import cpu_offload

    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4))
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert adapt(model, picture()).num_classes == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv", "two_heads", "squeeze"])
def test_half_types_are_exact(kind: str, dtype: torch.dtype) -> None:
    model = heads()[kind].to(dtype)
    view = adapt(model, picture().to(dtype))
    with torch.no_grad():
        features, logits = view.features_and_logits(picture(3).to(dtype))
        assert features.dtype == dtype
        assert torch.equal(view.head(features), logits)


def test_train_mode_pairs_come_from_one_forward() -> None:
    model = heads()["mlp"].train()
    before = trace(model)
    view = adapt(model, picture())
    assert trace(model) == before
    features, logits = view.features_and_logits(picture(4))
    torch.testing.assert_close(view.head(features), logits)
    assert features.requires_grad


def test_named_inputs_and_tuples() -> None:
    model = Net().eval()
    for example in ({"x": picture()}, (picture(),)):
        view = adapt(model, example)
        assert view.features(example).shape == (2, 6)


def test_an_inference_mode_caller_gets_the_same() -> None:
    model = heads()["two_heads"]
    with torch.inference_mode():
        view = adapt(model, picture())
        features, logits = view.features_and_logits(picture(3))
        torch.testing.assert_close(view.head(features), logits)


def test_detection_takes_at_most_two_forward_passes() -> None:
    calls = []
    for kind, most in (("linear", 1), ("batch_integer", 2)):
        model = heads()[kind]
        handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
        adapt(model, picture(8), verify=False)
        assert len(calls) <= most
        calls.clear()
        adapt(model, picture(8))
        assert len(calls) == most + 1
        calls.clear()
        handle.remove()


def test_hints_of_a_plain_module() -> None:
    model = Net()
    assert class_count_hint(model) is None
    object.__setattr__(model, "num_classes", CLASSES)
    assert class_count_hint(nn.DataParallel(model)) == CLASSES


def test_inspection_is_a_record_and_a_table() -> None:
    from rich.console import Console

    found = inspect_model(heads()["two_heads"], picture())
    record = found.to_dict()
    assert record["head_names"] == ["head", "head_dist"]
    assert record["feature_bytes"] == 48
    assert record["ecosystem"] == "plain"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(found)
    assert "head + head_dist" in console.export_text()
