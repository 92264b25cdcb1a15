"""Whole runs on models of every ecosystem, wrapped in every usual way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from forgetkit import forget
from forgetkit.adapting import adapt
from forgetkit.copying import independent_copy
from forgetkit.data.sets import StoredSet
from forgetkit.data.views import Joined, RowsOf
from forgetkit.engine.bank import FeatureBank
from forgetkit.engine.place import Place
from forgetkit.engine.preparing import prepare
from forgetkit.errors import DataError, ModelError
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, photograph, weights


def images(count: int = 24, size: int = 32, channels: int = 3, classes: int = 5) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    patterns = torch.randn(classes, channels, size, size, generator=generator)
    noise = 0.1 * torch.randn(count, channels, size, size, generator=generator)
    return TensorDataset(patterns[labels] + noise, labels)


def timm_model(name: str, **options: Any) -> nn.Module:  # noqa: ANN401  passed on to timm
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **options)
    return model


def tiny_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        id2label=dict(enumerate("abcde")),
        label2id={name: i for i, name in enumerate("abcde")},
    )
    return ViTForImageClassification(config)


def predicts(model: nn.Module, data: TensorDataset, label: int) -> bool:
    """Return whether any sample is predicted as the class."""
    model.eval()
    with torch.no_grad():
        output = model(data.tensors[0])
    logits: Tensor = getattr(output, "logits", output)
    return bool((logits.argmax(dim=1) == label).any())


def favour(model: nn.Module, head: str, label: int) -> None:
    """Make an untrained model predict one class, so that there is something to forget."""
    with torch.no_grad():
        bias = model.get_parameter(f"{head}.bias")
        bias.zero_()
        bias[label] = 3.0


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("resnet10t", "fc", {}),
        ("test_vit", "head", {"img_size": 32}),
        ("test_convnext", "head.fc", {}),
    ],
)
def test_timm(name: str, head: str, options: dict[str, Any]) -> None:
    model, data = timm_model(name, **options), images()
    favour(model, head, 2)
    before = weights(model)
    result = (
        forget(model)
        .classes([2])
        .using("lau", lr=0.05, epochs=60)
        .on("cpu")
        .run(DataLoader(data, batch_size=8), guard=None)
    )
    assert result.after["forget"].accuracy == 0.0
    assert set(changed(before, weights(model))) <= {f"{head}.weight", f"{head}.bias"}


def test_two_averaged_heads() -> None:
    model, data = timm_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1), images()
    favour(model, "head", 2)
    favour(model, "head_dist", 2)
    loader = DataLoader(data, batch_size=8)
    request = forget(model).classes([2]).on("cpu")
    assert (
        request.using("lau", lr=0.05, epochs=60).run(loader, guard=None).after["forget"].accuracy
        == 0.0
    )
    masked = request.using("linear_filtration", form="naive").run(loader, guard=None)
    assert masked.after["forget"].accuracy == 0.0
    assert not predicts(model, data, 2)


def test_transformers_with_names_and_dict_batches() -> None:
    model, data = tiny_vit(), images()
    favour(model, "classifier", 2)
    batches = [
        {"pixel_values": x, "labels": y}
        for x, y in zip(data.tensors[0].split(8), data.tensors[1].split(8), strict=True)
    ]
    result = (
        forget(model)
        .classes(["c"])
        .using("lau", lr=0.05, epochs=60)
        .on("cpu")
        .run(batches, guard=None)
    )
    assert result.forget_classes == (2,)
    assert result.after["forget"].accuracy == 0.0
    assert not predicts(model, data, 2) or result.after["forget"].samples < len(data)


def test_torchvision_without_a_class_hint() -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    model, data = squeezenet1_1(num_classes=5), images(size=64)
    request = forget(model).classes([2]).using("neggrad", lr=0.01, epochs=2).on("cpu")
    result = request.run(DataLoader(data, batch_size=8), guard=None)
    assert result.samples["forget"] == 5


class Named(IterableDataset[dict[str, object]]):
    """A stream of dictionaries."""

    def __iter__(self) -> Iterator[dict[str, object]]:
        data = toy("cnn").train
        for image, label in zip(*data.tensors, strict=True):
            yield {"image": image, "label": int(label)}


def test_streams_serve_methods_that_need_the_forget_set_alone() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("lau").on("cpu")
    result = request.run(DataLoader(Named(), batch_size=16))
    assert result.samples == {"forget": 60}
    assert result.after["forget"].accuracy == 0.0


@pytest.mark.parametrize("method", ["finetune", "auto"])
def test_streams_serve_methods_that_read_the_retained_samples(method: str) -> None:
    settings = {"epochs": 1} if method == "finetune" else {}
    models, samples = [], []
    whole = toy("cnn").loader()
    loader: Iterable[object]
    for loader in (iter(whole), whole):
        some = toy("cnn")
        request = forget(some.model).classes([3]).using(method, **settings).on("cpu")
        samples.append(request.run(loader, guard=None).samples)
        models.append(some.model.state_dict())
    assert samples[0] == samples[1] == {"forget": 60, "retain": 180}
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name]), name


class Batches(IterableDataset[list[Tensor]]):
    """A stream of whole batches, as WebDataset's loader is."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from DataLoader(toy("cnn").train, batch_size=16)


def test_a_data_set_of_batches_goes_into_a_loader_that_adds_no_axis() -> None:
    request = forget(toy("cnn").model).classes([3]).using("lau").on("cpu")
    with pytest.raises(DataError, match="with batch_size=None where it yields batches already"):
        request.run(Batches())
    assert request.run(DataLoader(Batches(), batch_size=None)).samples == {"forget": 60}


def test_iterators_and_namespaces() -> None:
    some = toy("cnn")
    x, y = some.train.tensors
    stream = (
        SimpleNamespace(image=a, label=b) for a, b in zip(x.split(32), y.split(32), strict=True)
    )
    result = forget(some.model).classes([3]).using("lau").on("cpu").run(stream)
    assert result.samples == {"forget": 60}
    assert result.after["forget"].accuracy == 0.0


class Around:
    """A progress bar: it starts no new pass of what it is around."""

    def __init__(self, stream: Iterator[object]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[object]:
        yield from self._stream


class SizedAround(Around):
    """A progress bar that was told how many batches there are."""

    def __len__(self) -> int:
        return 8


@pytest.mark.parametrize("around", [Around, SizedAround])
def test_what_can_be_read_only_once_loses_no_batch(around: type[Around]) -> None:
    some = toy("cnn")
    x, y = some.train.tensors
    loader = around(zip(x.split(32), y.split(32), strict=True))
    request = forget(some.model).instances([0, 1]).using("neggrad", epochs=1).on("cpu")
    prepared = prepare(request, loader, watched=0)
    assert torch.equal(next(iter(prepared.sets.forget.batches())).inputs, x[:2])  # type: ignore[arg-type]  # one tensor
    retain = prepared.sets.retain  # what has a length is kept whole
    assert (retain is not None and len(retain) == len(x) - 2) == (around is SizedAround)
    with pytest.raises(DataError, match="yields nothing"):
        request.run(loader)


@pytest.mark.parametrize("method", ["lau", "neggrad"])
@pytest.mark.filterwarnings("ignore")  # the compiler warns about its own internals
def test_compiled(method: str) -> None:
    some = toy("cnn")
    compiled = torch.compile(some.model, backend="eager")
    assert isinstance(compiled, nn.Module)
    compiled(some.train.tensors[0][:4])
    seen = photograph(some.model)
    result = forget(compiled).classes([3]).using(method, lr=0.01).on("cpu").run(some.loader())
    assert result.model is compiled
    assert result.after["forget"].accuracy == 0.0
    assert photograph(some.model).hooks == seen.hooks


class Inside(nn.Module):
    """A model that has one of its modules compiled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        compiled = torch.compile(inner, backend="eager")
        assert isinstance(compiled, nn.Module)
        self.net = compiled

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


@pytest.mark.filterwarnings("ignore")  # the compiler warns about its own internals
def test_a_compiled_part(tmp_path: Path) -> None:
    some = toy("cnn")
    model = Inside(some.model).eval()
    x = some.train.tensors[0][:4]
    logits = model(x)
    twin = independent_copy(model)
    assert torch.equal(twin(x), logits)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(x), logits)
    request = forget(model).classes([3]).using("scrub", epochs=1).on("cpu")
    result = request.run(some.loader(), guard=None)
    record = result.audit(some.loader(), metrics=["accuracy"])
    assert record["accuracy"].value is not None
    with torch.no_grad():
        model.train()(some.train.tensors[0])  # moves running statistics alone
    assert result.save(tmp_path / "out")


def test_channels_last_stays() -> None:
    some = toy("cnn")
    some.model.to(memory_format=torch.channels_last)
    conv = next(m for m in some.model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1)
    forget(some.model).classes([3]).using("finetune", epochs=1).on("cpu").run(
        some.loader(), guard=None
    )
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_peft() -> None:
    from peft import LoraConfig, get_peft_model

    model, data = tiny_vit(), images()
    favour(model, "classifier", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(
            model,
            LoraConfig(
                r=2, target_modules=r".*(query|value|q_proj|v_proj)", modules_to_save=["classifier"]
            ),
        )
    before = weights(wrapped)
    result = (
        forget(wrapped)
        .classes([2])
        .using("lau", lr=0.05, epochs=60)
        .on("cpu")
        .run(DataLoader(data, batch_size=8), guard=None)
    )
    moved = changed(before, weights(wrapped))
    assert result.after["forget"].accuracy == 0.0
    assert moved
    assert all("modules_to_save" in name for name in moved)


def test_an_accelerator_of_the_caller_is_used() -> None:
    from accelerate import Accelerator

    some = toy("cnn")
    accelerator = Accelerator(cpu=True)
    request = forget(some.model).classes([3]).using("lau").on(accelerator=accelerator)
    assert request.run(some.loader()).after["forget"].accuracy == 0.0


@pytest.mark.parametrize("chained", [False, True])
def test_a_model_spread_over_devices_is_refused(*, chained: bool) -> None:
    from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module

    some = toy("cnn")
    before = weights(some.model)
    for name, module in some.model.named_children():
        if chained:
            add_hook_to_module(module, ModelHook())
        hook = AlignDevicesHook("cpu")
        add_hook_to_module(module, hook, append=chained)
        if name == "fc":
            hook.execution_device = "cuda:1"  # where there is one, the weights would be there
    for method in ("lau", "finetune"):
        request = forget(some.model).classes([3]).using(method).on("cpu")
        with pytest.raises(ModelError, match="found fc bound to cuda:1 by a hook of Accelerate"):
            request.run(some.loader())
    assert not changed(before, weights(some.model))


def test_hooks_for_the_device_of_the_run_are_fine() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    some = toy("cnn")
    add_hook_to_module(some.model.get_submodule("fc"), AlignDevicesHook("cpu"))
    request = forget(some.model).classes([3]).using("lau").on("cpu")
    assert request.run(some.loader()).after["forget"].accuracy == 0.0


class HalfInside(nn.Module):
    """Computes in half precision, as a model that ``Accelerator.prepare`` left so does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.net(images)
        return logits.float()


def test_gradients_of_samples_of_a_model_that_autocasts_itself() -> None:
    some = toy("cnn")
    request = forget(HalfInside(some.model)).classes([3]).using("ssd", threshold=1.0).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert result.after["forget"].accuracy < result.before["forget"].accuracy


def test_a_large_bank_lives_in_a_file() -> None:
    some = toy("cnn")
    model = some.model.eval()
    x, y = some.train.tensors
    view = adapt(model, x[:2])
    samples = StoredSet(x, y, batch_size=50)
    bank = FeatureBank(view, Place(torch.device("cpu")), lambda: None, budget=1024)
    memory = FeatureBank(view, Place(torch.device("cpu")), lambda: None)
    on_disk, in_memory = bank.extract(samples), memory.extract(samples)
    assert torch.equal(
        torch.cat([b.inputs for b in on_disk.batches() if isinstance(b.inputs, Tensor)]),
        torch.cat([b.inputs for b in in_memory.batches() if isinstance(b.inputs, Tensor)]),
    )
    assert on_disk.batch_size == 50
    bank.close()


def test_the_head_is_given_many_vectors_at_once_and_few_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = toy("cnn")
    model = some.model.eval()
    x, y = some.train.tensors
    samples = StoredSet(x, y, batch_size=5)
    bank = FeatureBank(adapt(model, x[:2]), Place(torch.device("cpu")), lambda: None)
    found = bank.extract(samples)
    assert found.at_once == 4096
    assert found.take(torch.arange(3)).at_once == found.relabelled(y).at_once == 4096
    assert RowsOf(found, torch.arange(3)).at_once == 4096
    assert Joined(found, samples).at_once == 5
    width = found.inputs[0].numel() if isinstance(found.inputs, Tensor) else 0
    monkeypatch.setattr("forgetkit.engine.bank.AT_ONCE", 4 * width * 30)
    assert bank.extract(samples).at_once == 30


class Noisy(TensorDataset):
    """Random augmentation: every read gives another image."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = (tensor[index] for tensor in self.tensors)
        return image + 0.01 * torch.randn_like(image), label


def test_random_augmentation_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    some = toy("cnn")
    loader = DataLoader(Noisy(*some.train.tensors), batch_size=32)
    result = forget(some.model).classes([3]).using("lau").on("cpu").run(loader, guard=None)
    assert "random augmentation" in caplog.text
    assert result.after["forget"].accuracy <= 0.05


@pytest.mark.filterwarnings("ignore:FSDP is switching", "ignore:.*FSDP1.*")
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", ["flat", "original", "inner", "dtensor", "zero"])
@pytest.mark.parametrize("slug", ["lau", "ssd", "finetune"])
def test_sharded_weights_are_refused(kind: str, slug: str) -> None:
    some = toy("cnn")
    model = some.model
    cpu = torch.device("cpu")
    if kind in ("flat", "original"):
        model = FullyShardedDataParallel(model, use_orig_params=kind == "original", device_id=cpu)
    elif kind == "inner":
        inner = FullyShardedDataParallel(model.get_submodule("fc"), device_id=cpu)
        model.register_module("fc", inner)
    elif kind == "dtensor":
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    else:
        model.get_parameter("fc.weight").ds_id = 0  # type: ignore[attr-defined]  # as ZeRO does
    with pytest.raises(ModelError, match=r"expected whole tensors, found .* sharded"):
        forget(model).classes([3]).using(slug).on("cpu").run(some.loader())


@pytest.mark.filterwarnings("ignore")  # torch calls its own quantisation deprecated
@pytest.mark.parametrize("kind", ["packed", "wrapped"])
@pytest.mark.parametrize("slug", ["lau", "finetune"])
def test_quantised_weights_are_refused(kind: str, slug: str) -> None:
    some = toy("cnn")
    model = some.model.eval()
    if kind == "packed":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    else:
        weight = model.get_parameter("fc.weight").detach()
        model.get_submodule("fc").weight = nn.Parameter(TwoTensor(weight, weight))
    with pytest.raises(ModelError, match=r"expected weights in floating point, found fc.* quantis"):
        forget(model).classes([3]).using(slug).on("cpu").run(some.loader())
