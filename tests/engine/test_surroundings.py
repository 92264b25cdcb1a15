"""What surrounds a call, and what a model does to itself, must not change a run or be changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import CannotSplitModel, Guard, forget
from forgetkit.copying import independent_copy
from forgetkit.engine.session import Storage, borrowed_flags, borrowed_randomness
from forgetkit.errors import ForgetkitError, ModelError, PatchMismatch
from forgetkit.model_errors import cure_of
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights


def run(method: str, **options: Any) -> dict[str, Tensor]:  # noqa: ANN401  hyper-parameters
    some: Any = toy("cnn")
    forget(some.model).classes([3]).using(method, **options).on("cpu").run(
        some.loader(), guard=None
    )
    return weights(some.model)


@pytest.mark.parametrize("method", ["neggrad", "finetune", "lau"])
def test_the_callers_autocast_stays_outside(method: str) -> None:
    options = {} if method == "lau" else {"epochs": 1}
    expected = run(method, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(method, **options)
        assert torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert not changed(expected, found)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("method", ["lau", "neggrad"])
def test_the_callers_default_device_stays_outside(method: str) -> None:
    found = []
    for device in ("cpu", "meta"):
        some = toy("cnn")
        loader = some.loader()
        request = forget(some.model).classes([3]).using(method, epochs=1).on("cpu")
        with torch.device(device):
            request.run(loader, guard=Guard(budget=1.0))
            assert torch.get_default_device().type == device
        found.append(weights(some.model))
    assert not changed(*found)


def test_a_tensor_that_follows_the_default_device_has_a_cure() -> None:
    error = RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!")
    assert "device=input.device" in cure_of(error)


@pytest.mark.parametrize(
    ("images", "weights", "cure"),
    [
        ("torch.FloatTensor", "torch.cuda.FloatTensor", "on two devices"),
        ("torch.cuda.FloatTensor", "torch.FloatTensor", "on two devices"),
        ("torch.cuda.ByteTensor", "torch.cuda.FloatTensor", "give floats"),
        ("torch.ByteTensor", "torch.FloatTensor", "give floats"),
        ("CPUBFloat16Type", "torch.FloatTensor", "give floats"),
        ("CPUBFloat16Type", "torch.cuda.FloatTensor", "on two devices"),
        ("torch.cuda.FloatTensor", "CUDABFloat16Type", "give floats"),
    ],
)
def test_a_convolution_tells_other_devices_from_other_types(
    images: str, weights: str, cure: str
) -> None:
    error = RuntimeError(f"Input type ({images}) and weight type ({weights}) should be the same")
    assert cure in cure_of(error)


def test_mixed_precision_inside_the_callers_autocast_is_that_of_outside() -> None:
    def trained() -> dict[str, Tensor]:
        some: Any = toy("cnn")
        request = forget(some.model).classes([3]).using("finetune", epochs=2)
        request.on("cpu", mixed_precision="bf16").run(some.loader(), guard=None)
        return weights(some.model)

    expected = trained()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not changed(expected, trained())


class Counting(nn.Module):
    """Counts its calls in a buffer, puts a new tensor in the place of another, expands a third."""

    calls: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = toy("cnn").model
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.ones(3))
        self.register_buffer("wide", torch.ones(1).expand(5))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.training:
            self.mean = 0.9 * self.mean + 0.1
            self.mean = self.mean * 2
        logits: Tensor = self.body(images)
        return logits


@pytest.mark.parametrize("method", ["lau", "finetune"])
def test_buffers_that_a_forward_pass_changes_come_back_when_a_run_fails(method: str) -> None:
    model = Counting()
    held = dict(model.named_buffers())
    before = weights(model)

    def exploding(*_: object) -> None:
        if sum(1 for _ in model.named_buffers()) and float(model.calls) > 6:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(exploding)
    request = forget(model).classes([3]).using(method).on("cpu")
    model.train()
    if method == "finetune":
        with pytest.raises(KeyboardInterrupt):
            request.run(toy("cnn").loader(), guard=None)
    else:
        request.run(toy("cnn").loader(), guard=None)
        before = {name: t for name, t in before.items() if "fc" not in name}
    handle.remove()
    after = weights(model)
    assert not changed(before, {name: after[name] for name in before})
    assert {id(held[name]) for name in held} == {id(b) for _, b in model.named_buffers()}


def test_a_refused_request_leaves_buffers_alone() -> None:
    model = Counting()
    with pytest.raises(ForgetkitError):
        forget(model).classes([9]).using("lau").on("cpu").run(toy("cnn").loader())
    assert float(model.calls) == 0.0


def test_undo_gives_a_replaced_buffer_back() -> None:
    model = Counting()
    before, held = weights(model), model.mean
    result = (
        forget(model).classes([3]).using("finetune", epochs=1).on("cpu")
        .run(toy("cnn").loader(), guard=None)
    )  # fmt: skip
    assert model.mean is held
    result.undo()
    assert not changed(before, weights(model))


class Unsaved(nn.Module):
    """Counts images in a buffer that no checkpoint holds, and keeps one that none changes."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = toy("cnn").model
        self.register_buffer("seen", torch.full((), 5.0), persistent=False)
        self.register_buffer("still", torch.ones(3), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += len(images)
        logits: Tensor = self.body(images)
        return logits


def test_undo_gives_back_a_buffer_that_no_patch_holds() -> None:
    model = Unsaved()
    request = forget(model).classes([3]).using("retrain", epochs=1).on("cpu")
    results = [request.seed(n).run(toy("cnn").loader(), guard=None) for n in range(2)]
    counted = float(model.seen)
    assert counted > 5.0
    assert [list(result.unsaved) for result in results] == [["seen"], ["seen"]]
    with pytest.raises(PatchMismatch):
        results[0].undo()  # the later run comes first
    assert float(model.seen) == counted
    for result, count in zip(reversed(results), ((counted + 5.0) / 2, 5.0), strict=True):
        result.undo()
        assert float(model.seen) == count


def small(labels: int = 3, images: int = 41) -> tuple[nn.Module, DataLoader[Any]]:
    import torchvision

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(images, 3, 32, 32), torch.arange(images) % labels)
    return torchvision.models.resnet18(num_classes=labels), DataLoader(data, 13)


def test_no_training_batch_has_one_image() -> None:
    model, loader = small(images=40)  # 27 retained images: 13, 13 and 1, at one place each
    result = (
        forget(model).classes([2]).using("finetune", epochs=1, batch_size=13, bn="train").on("cpu")
        .run(loader, guard=None)
    )  # fmt: skip
    assert result.history


def replaced(make: Callable[[], nn.Module], name: str) -> nn.Module:
    model = make()
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    setattr(model, name, nn.Linear(old.in_features, 3))
    return model


def timm_model() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("resnet10t", num_classes=1000)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random_label", "neggrad"])
def test_a_replaced_classifier_is_believed_and_not_what_the_model_says(method: str) -> None:
    _, loader = small()
    model = replaced(timm_model, "fc")
    result = forget(model).classes([2]).using(method, epochs=1).on("cpu").run(loader, guard=None)
    record = result.audit(loader, test=loader, device="cpu", metrics=["accuracy"])
    assert record["accuracy"].value is not None


def test_a_frozen_part_in_half_precision_agrees_with_the_rest() -> None:
    some: Any = toy("cnn")
    model = some.model.bfloat16().requires_grad_(requires_grad=False)
    model.fc.requires_grad_(requires_grad=True)
    before = weights(model)
    for method in ("neggrad", "finetune", "ssd"):
        forget(model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    moved = changed(before, weights(model))
    assert moved
    assert all(name.startswith("fc.") for name in moved)


class Remembering(nn.Module):
    """Keeps its last activation, which hangs on a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body = toy("cnn").model
        self.last: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.last = self.body(images)
        return self.last


def test_a_model_that_keeps_an_activation_is_copied() -> None:
    model, some = Remembering().eval(), toy("cnn")
    model(some.train.tensors[0][:2])
    twin = independent_copy(model)
    assert isinstance(twin.last, Tensor)
    assert model.last is not None
    assert torch.equal(twin.last, model.last)
    assert not twin.last.requires_grad
    request = forget(model).classes([3]).using("scrub", epochs=1).on("cpu")
    result = request.run(some.loader(), guard=None)
    model(some.train.tensors[0][:2])
    record = result.audit(some.loader(), test=DataLoader(some.test, 64), metrics=["accuracy"])
    assert record["accuracy"].value is not None


def test_a_forward_that_holds_on_to_the_model_is_refused() -> None:
    some: Any = toy("cnn")
    inner = some.model.forward
    some.model.forward = lambda images: inner(images)
    before = weights(some.model)
    with pytest.raises(ModelError, match=r"forward .* a function that holds on to the model"):
        forget(some.model).classes([3]).using("bad_teaching").run(some.loader(), guard=None)
    assert not changed(before, weights(some.model))
    with pytest.raises(ModelError, match=r"types\.MethodType"):
        independent_copy(some.model)


def test_a_forward_that_is_bound_to_the_copy_is_fine() -> None:
    some: Any = toy("cnn")
    images = some.train.tensors[0][:2]
    body = some.model.body
    body.forward = functools.partial(type(body).forward, body)
    twin = independent_copy(some.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert float(twin(images).abs().max()) == 0.0
        assert float(some.model(images).abs().max()) > 0.0


class Two(nn.Module):
    """Returns its logits and as wide a tensor beside them, or other features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = toy("cnn").model
        self.num_classes = 4
        self.other = nn.Linear(4, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.body(images)
        return logits, self.other(logits)


def test_of_several_outputs_the_one_with_the_classes_is_taken() -> None:
    some: Any = toy("cnn")
    result = (
        forget(Two(7)).classes([3]).using("scrub", epochs=1).on("cpu")
        .run(some.loader(), guard=None)
    )  # fmt: skip
    assert result.history
    with pytest.raises(CannotSplitModel, match=r"\.head\(name, output=\.\.\.\)"):
        forget(Two(4)).classes([3]).using("scrub", epochs=1).run(some.loader(), guard=None)


def test_a_part_of_a_larger_tensor_is_saved(tmp_path: Any) -> None:  # noqa: ANN401
    some: Any = toy("cnn")
    large = torch.cat([some.model.fc.weight.data, torch.zeros(3, 16)])
    some.model.fc.weight = nn.Parameter(large[:4])
    result = forget(some.model).classes([3]).using("lau").on("cpu").run(some.loader(), guard=None)
    result.save(tmp_path / "model")
    from safetensors.torch import load_file

    found = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(found["fc.weight"], some.model.fc.weight)


def test_one_class_as_a_tensor_is_one_class() -> None:
    some: Any = toy("cnn")
    three: Any = torch.tensor(3)
    request = forget(some.model).classes(three)
    assert request.using("lau").on("cpu").run(some.loader(), guard=None).forget_classes == (3,)


def test_an_entry_that_forward_does_not_take_has_a_cure() -> None:
    some: Any = toy("cnn")
    images, labels = some.train.tensors

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = some.model

        def forward(self, pixel_values: Tensor) -> Tensor:
            logits: Tensor = self.body(pixel_values)
            return logits

    batches = [{"pixel_values": images, "labels": labels, "index": torch.arange(len(labels))}]
    with pytest.raises(ForgetkitError, match="drop it in the data set"):
        forget(Named()).classes([3]).using("lau").on("cpu").run(batches)


def test_one_hot_labels_are_mentioned() -> None:
    some: Any = toy("cnn")
    images, labels = some.train.tensors
    rows = nn.functional.one_hot(labels, 4).float()

    def notes(given: Tensor) -> str:
        model = toy("cnn").model
        loader = DataLoader(TensorDataset(images, given), 64)
        request = forget(model).instances(range(20)).using("neggrad", epochs=1).on("cpu")
        return " ".join(request.run(loader, guard=None).notes)

    assert "labels.argmax(dim=1)" in notes(rows)
    several = rows.clone()
    several[:20, 0] = 1.0
    assert "argmax" not in notes(several)
    assert "argmax" not in notes(labels)


def test_a_forward_that_calls_itself_is_looked_through() -> None:
    some: Any = toy("cnn")

    def stateless(images: Tensor, again: bool = True) -> Tensor:
        return stateless(images, again=False) if again else images.flatten(1)

    some.model.dropout.forward = stateless
    assert independent_copy(some.model) is not some.model
    inner = some.model.fc.forward

    def held(images: Tensor, again: bool = True) -> Tensor:
        logits: Tensor = held(images, again=False) if again else inner(images)
        return logits

    some.model.fc.forward = held
    with pytest.raises(ModelError, match="module fc"):
        independent_copy(some.model)


def test_a_flag_that_torch_lets_nobody_set_does_not_keep_others_from_coming_back() -> None:
    with torch.inference_mode():
        first = nn.Linear(2, 2)
    model = nn.Sequential(first, nn.Linear(2, 2))
    with borrowed_flags(model):
        model[1].requires_grad_(requires_grad=False)
    assert [p.requires_grad for p in model.parameters()] == [True] * 4


@pytest.mark.parametrize("of_all", ["_all", ""])  # CUDA and XPU have several devices, MPS has one
def test_the_random_states_of_an_accelerator_come_back(
    monkeypatch: pytest.MonkeyPatch, of_all: str
) -> None:
    first: object = ["of one device", "of another"] if of_all else "of the only device"
    held = {"state": first}
    module = SimpleNamespace(
        **{
            f"get_rng_state{of_all}": lambda: held["state"],
            f"set_rng_state{of_all}": lambda state: held.update(state=state),
        }
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    with borrowed_randomness(0):
        held["state"] = "the run's"
    assert held["state"] == first


def test_every_tensor_goes_home_where_a_copy_finds_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = toy("cnn")
    some.model.to(torch.bfloat16)
    before = weights(some.model)
    copies = iter(range(100))
    copy_ = Tensor.copy_

    def failing(self: Tensor, source: Tensor) -> Tensor:
        if self.dtype == torch.bfloat16 and source.dtype == torch.float32 and next(copies) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copy_(self, source)

    monkeypatch.setattr(Tensor, "copy_", failing)
    request = forget(some.model).classes([3]).using("finetune", epochs=1).on("cpu")
    with pytest.raises(ForgetkitError, match="too little memory"):
        request.run(some.loader(), guard=None)
    assert all(tensor.dtype == before[name].dtype for name, tensor in weights(some.model).items())
    assert not changed(before, weights(some.model))


def test_of_tensors_in_one_memory_the_last_goes_home_last() -> None:
    for turn in range(4):  # other names each time: a set has no order of its own
        home = torch.zeros(2, dtype=torch.bfloat16)
        names = [f"{turn}.{number}" for number in range(32)]
        tensors = {name: torch.empty(0, dtype=torch.bfloat16) for name in names}
        for tensor in tensors.values():
            tensor.data = home
        with Storage(tensors, set(names), torch.device("cpu")).borrowed():
            for number, tensor in enumerate(tensors.values()):
                tensor.data.fill_(float(number))
        assert home.tolist() == [31.0, 31.0]
