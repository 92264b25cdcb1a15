"""Bad input: the right error, a message in four parts, and a model that is bit-identical."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import (
    BadHyperparameter,
    BadTarget,
    CannotSplitModel,
    DataError,
    ForgetkitError,
    Guard,
    ModelError,
    Request,
    UnknownMethod,
    UnlearningFailed,
    forget,
)
from forgetkit.testing import Toy, toy
from forgetkit.testing.trace import changed, photograph, weights

Act = Callable[[Toy], object]


def start(some: Toy) -> Request:
    return forget(some.model).classes([3]).on("cpu")


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    images = torch.randn(8 * count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8 * count) % 4
    return list(zip(images.split(8), labels.split(8), strict=True))


def poisoned(value: float) -> DataLoader[tuple[Tensor, ...]]:
    images = torch.randn(16, 1, 8, 8)
    images[9, 0, 3, 3] = value
    return DataLoader(TensorDataset(images, torch.arange(16) % 4), batch_size=8)


def labelled(labels: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(torch.randn(len(labels), 1, 8, 8), labels), batch_size=8)


def broken_weights(some: Toy) -> object:
    with torch.no_grad():
        next(some.model.parameters()).fill_(float("nan"))
    return start(some).using("lau").run(some.loader())


def frozen(some: Toy, method: str) -> object:
    for parameter in some.model.parameters():
        parameter.requires_grad_(False)
    return start(some).using(method).run(some.loader())


def tied(some: Toy) -> object:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    return forget(model).classes([3]).using("lau").on("cpu").run(batches())


class NoHead(nn.Module):
    """Features without a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.body(images)
        return found


class Raises(nn.Module):
    """Breaks once it is trained or read in batches."""

    def __init__(self, body: nn.Module, error: Exception) -> None:
        super().__init__()
        self.body, self.error = body, error

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 2:  # the dry run takes two
            raise self.error
        found: Tensor = self.body(images)
        return found


class WithoutGradients(nn.Module):
    """Has a forward that is meant for inference only."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.body(images)
        return found


@dataclass(frozen=True)
class Case:
    """What to do, what to expect, and a word that the message must contain."""

    act: Act
    error: type[ForgetkitError]
    says: str


CASES: dict[str, Case] = {
    "class out of range": Case(
        lambda t: forget(t.model).classes([4]).using("lau").run(t.loader()), BadTarget, "0 to 3"
    ),
    "negative class": Case(lambda t: forget(t.model).classes([-1]), BadTarget, "-1"),
    "no class": Case(lambda t: forget(t.model).classes([]), BadTarget, "empty"),
    "class twice": Case(lambda t: forget(t.model).classes([1, 1]), BadTarget, "1"),
    "class as a float": Case(lambda t: forget(t.model).classes([1.5]), BadTarget, "1.5"),  # type: ignore[list-item]
    "class as a bool": Case(lambda t: forget(t.model).classes([True]), BadTarget, "True"),
    "one string instead of a list": Case(
        lambda t: forget(t.model).classes("Dress"), BadTarget, "list"
    ),
    "one number instead of a list": Case(
        lambda t: forget(t.model).classes(3),  # type: ignore[arg-type]
        BadTarget,
        "list",
    ),
    "all classes": Case(
        lambda t: forget(t.model).classes([0, 1, 2, 3]).using("lau").run(t.loader()),
        BadTarget,
        "all 4",
    ),
    "unknown class name": Case(
        lambda t: forget(t.model).classes(["Dres"]).using("lau").run(t.loader()), BadTarget, "Dres"
    ),
    "class without samples": Case(
        lambda t: start(t).using("lau").run(labelled(torch.tensor([0, 1, 2, 0]))),
        BadTarget,
        "3",
    ),
    "two goals": Case(lambda t: start(t).instances([1]), BadTarget, "one goal"),
    "no goal": Case(lambda t: forget(t.model).using("lau").run(t.loader()), BadTarget, "no goal"),
    "goal not served": Case(
        lambda t: forget(t.model).relabel({1: 2}).using("lau").run(t.loader()),
        BadTarget,
        "relabel",
    ),
    "auto without a fitting method": Case(
        lambda t: start(t).using("auto").run(labelled(torch.eye(4)[torch.arange(8) % 4])),
        BadTarget,
        "several labels",
    ),
    "position out of range": Case(
        lambda t: forget(t.model).instances([10**6]).using("neggrad").run(t.loader()),
        BadTarget,
        "1000000",
    ),
    "position twice": Case(lambda t: forget(t.model).instances([5, 5]), BadTarget, "5"),
    "negative position": Case(lambda t: forget(t.model).instances([-3]), BadTarget, "-3"),
    "no position": Case(lambda t: forget(t.model).instances([]), BadTarget, "empty"),
    "no method": Case(lambda t: start(t).run(t.loader()), BadHyperparameter, "method"),
    "unknown method": Case(lambda t: start(t).using("lua"), UnknownMethod, "'lau'"),
    "unknown hyper-parameter": Case(
        lambda t: start(t).using("lau", alhpa=0.5), BadHyperparameter, "alpha"
    ),
    "hyper-parameter out of range": Case(
        lambda t: start(t).using("lau", alpha=1.5), BadHyperparameter, "[0, 1]"
    ),
    "hyper-parameter of the wrong type": Case(
        lambda t: start(t).using("lau", epochs="ten"), BadHyperparameter, "integer"
    ),
    "option that is none": Case(
        lambda t: start(t).using("neggrad", bn="off"), BadHyperparameter, "frozen"
    ),
    "hyper-parameter of auto": Case(
        lambda t: start(t).using("auto", alpha=0.5), BadHyperparameter, "auto"
    ),
    "bad seed": Case(lambda t: start(t).seed(-1), BadHyperparameter, "-1"),
    "bad precision": Case(
        lambda t: start(t).using("lau").on("cpu", mixed_precision="fp8").run(t.loader()),
        BadHyperparameter,
        "bf16",
    ),
    "device that is not there": Case(
        lambda t: start(t).using("lau").on("cuda:99").run(t.loader()), BadHyperparameter, "device"
    ),
    "device without numbers": Case(
        lambda t: start(t).using("lau").on("meta").run(t.loader()), BadHyperparameter, "'cpu'"
    ),
    "device as a fraction": Case(
        lambda t: start(t).using("lau").on(3.5).run(t.loader()),  # type: ignore[arg-type]
        BadHyperparameter,
        "found float; pass 'cpu'",
    ),
    "model without memory": Case(
        lambda t: forget(Raises(t.model, MemoryError())).classes([3]).using("lau").run(t.loader()),
        UnlearningFailed,
        "batch_size=",
    ),
    "model without memory on its device": Case(
        lambda t: (
            forget(Raises(t.model, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")))
            .classes([3])
            .using("neggrad")
            .run(t.loader())
        ),
        UnlearningFailed,
        ".on(accumulate=...)",
    ),
    "model that switches gradients off": Case(
        lambda t: (
            forget(WithoutGradients(t.model))
            .classes([3])
            .using("neggrad")
            .on("cpu")
            .run(t.loader())
        ),
        UnlearningFailed,
        "switches gradients off",
    ),
    "bad accumulation": Case(
        lambda t: start(t).on("cpu", accumulate=0), BadHyperparameter, "positive"
    ),
    "bad guard": Case(
        lambda t: start(t).using("lau").run(t.loader(), guard="off"), BadHyperparameter, "Guard"
    ),
    "bad guard budget": Case(lambda _: Guard(budget=10.0), BadHyperparameter, "fraction"),
    "guard budget as a word": Case(lambda _: Guard(budget="0.1"), BadHyperparameter, "fraction"),  # type: ignore[arg-type]  # wrong on purpose
    "guard with half a sample": Case(lambda _: Guard(most=10.5), BadHyperparameter, "whole number"),  # type: ignore[arg-type]  # wrong on purpose
    "head without anything": Case(lambda t: start(t).head(), BadHyperparameter, "found neither"),
    "head by number": Case(lambda t: start(t).head(3), BadHyperparameter, "dotted path"),  # type: ignore[arg-type]  # wrong on purpose
    "head as a module": Case(
        lambda t: start(t).head(t.model),  # type: ignore[arg-type]  # wrong on purpose
        BadHyperparameter,
        "dotted path",
    ),
    "accelerator that is none": Case(
        lambda t: start(t).on(accelerator="x"), BadHyperparameter, "accelerate.Accelerator"
    ),
    "several presets": Case(
        lambda t: start(t).using("lau", preset=["paper"]), BadHyperparameter, "one of"
    ),
    "retain set missing": Case(
        lambda t: start(t).using("finetune").run(t.forget_loader()), DataError, ".retain("
    ),
    "retain set missing behind a stream": Case(
        lambda t: start(t).using("finetune").run(iter(t.forget_loader())), DataError, ".retain("
    ),
    "forgotten class in the retain set": Case(
        lambda t: start(t).using("finetune").retain(t.loader()).run(t.forget_loader()),
        DataError,
        "retain",
    ),
    "loader without labels": Case(
        lambda t: start(t).using("lau").run([torch.randn(4, 1, 8, 8)]), DataError, "label"
    ),
    "labels outside the range": Case(
        lambda t: start(t).using("lau").run(labelled(torch.tensor([0, 3, 9, 1]))), DataError, "9"
    ),
    "negative labels": Case(
        lambda t: start(t).using("lau").run(labelled(torch.tensor([0, 3, -1, 1]))), DataError, "-1"
    ),
    "soft labels": Case(
        lambda t: start(t).using("lau").run(labelled(torch.tensor([0.5, 3.0, 1.0, 2.0]))),
        DataError,
        "0.5",
    ),
    "NaN in an image": Case(
        lambda t: start(t).using("neggrad").run(poisoned(float("nan"))), DataError, "NaN"
    ),
    "infinity in an image": Case(
        lambda t: start(t).using("finetune").run(poisoned(float("inf"))), DataError, "infinity"
    ),
    "not a loader": Case(
        lambda t: start(t).using("lau").run(42),  # type: ignore[arg-type]
        DataError,
        "int",
    ),
    "empty loader": Case(lambda t: start(t).using("lau").run([]), DataError, "nothing"),
    "exhausted iterator": Case(lambda t: start(t).using("lau").run(iter([])), DataError, "nothing"),
    "mixed batch types": Case(
        lambda t: (
            start(t)
            .using("lau")
            .run([*batches(), {"image": torch.zeros(2, 1, 8, 8), "label": torch.tensor([0, 3])}])
        ),
        DataError,
        "form",
    ),
    "images and labels of different number": Case(
        lambda t: start(t).using("lau").run([(torch.zeros(4, 1, 8, 8), torch.tensor([0, 3]))]),
        DataError,
        "2",
    ),
    "images as a list": Case(
        lambda t: start(t).using("lau").run([([1, 2, 3], torch.tensor([0, 3, 1]))]),
        DataError,
        "tensor",
    ),
    "all parameters frozen, head": Case(lambda t: frozen(t, "lau"), ModelError, "frozen"),
    "all parameters frozen, network": Case(lambda t: frozen(t, "neggrad"), ModelError, "frozen"),
    "not a model": Case(
        lambda _: forget(torch.zeros(3)),  # type: ignore[arg-type]
        ModelError,
        "Module",
    ),
    "model without weights": Case(
        lambda _: forget(nn.Flatten()).classes([3]).using("lau").run(batches()),
        ModelError,
        "no par",
    ),
    "model on the meta device": Case(
        lambda _: forget(nn.Linear(64, 4, device="meta")).classes([3]).using("lau").run(batches()),
        ModelError,
        "meta",
    ),
    "lazy model": Case(
        lambda _: (
            forget(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))
            .classes([3])
            .using("lau")
            .run(batches())
        ),
        ModelError,
        "lazy",
    ),
    "tied head": Case(tied, ForgetkitError, "shared"),
    "head not found": Case(
        lambda _: forget(NoHead()).classes([3]).using("lau").run(batches()),
        CannotSplitModel,
        "head=",
    ),
    "wrong head name": Case(
        lambda t: start(t).head("classifier").using("lau").run(t.loader()),
        CannotSplitModel,
        "classifier",
    ),
    "NaN in the weights": Case(broken_weights, ForgetkitError, "finite"),
    "diverging run": Case(
        lambda t: start(t).using("finetune", lr=10.0, anchor=1e6, epochs=100).run(t.loader()),
        UnlearningFailed,
        "finite",
    ),
    "hub id that would be downloaded": Case(
        lambda _: forget("nobody/no-such-model"), ForgetkitError, "nobody/no-such-model"
    ),
}


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str) -> None:
    case = CASES[name]
    some = toy("cnn")
    before: dict[str, Tensor] = {}
    seen = photograph(some.model)
    if name != "NaN in the weights" and not name.startswith("all parameters frozen"):
        before = weights(some.model)
    with pytest.raises(case.error) as caught:
        case.act(some)
    message = str(caught.value)
    assert case.says.lower() in message.lower(), message
    assert len(message) > 40, message
    assert ";" in message or "." in message, message
    if before:
        assert changed(before, weights(some.model)) == []
        after = photograph(some.model)  # the cases themselves draw random images
        assert replace(after, random=b"") == replace(seen, random=b"")


def test_a_last_batch_of_one_image_is_no_problem() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    keep = torch.cat([torch.nonzero(labels != 3)[:33, 0], torch.nonzero(labels == 3)[:, 0]])
    loader = DataLoader(TensorDataset(images[keep], labels[keep]), batch_size=32)
    request = start(some).using("finetune", epochs=1, batch_size=32, bn="train")
    result = request.run(loader, guard=None)
    assert result.history
