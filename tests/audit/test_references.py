"""Reference models: what they saw, the cache, the budget, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetkit import BadHyperparameter, BadTarget, audit, train_references
from forgetkit.auditing import references
from forgetkit.method import build
from forgetkit.testing import toy

GONE = 3
RECIPE: dict[str, Any] = {"epochs": 8, "lr": 0.003, "optimizer": "adamw", "batch_size": 32}


def states(models: list[nn.Module]) -> list[dict[str, Tensor]]:
    return [model.state_dict() for model in models]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(left[name].equal(right[name]) for name in left)


def test_references_never_saw_the_class_and_differ() -> None:
    some = toy("cnn")
    before = {name: tensor.clone() for name, tensor in some.model.state_dict().items()}
    said: list[str] = []
    found = train_references(
        some.model, some.loader(), classes=[GONE], count=2, device="cpu", say=said.append, **RECIPE
    )
    assert len(found) == 2
    assert len(said) == 2
    assert same(before, some.model.state_dict())
    images, labels = some.test.tensors
    for model in found:
        assert not model.training
        with torch.no_grad():
            right = model(images).argmax(dim=1) == labels
        assert float(right[labels == GONE].double().mean()) == 0.0
        assert float(right[labels != GONE].double().mean()) > 0.8
    assert not same(*states(found))
    record = audit(
        some.model, forget=some.loader(), test=some.loader(), classes=[GONE], device="cpu",
        reference=found, metrics=["js", "rmia"],
    )  # fmt: skip
    assert record.models["retrained"] == 2
    assert record["js"].value is not None


def test_the_cache_is_read_and_tells_requests_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = toy("cnn")
    asked: dict[str, Any] = {"cache": tmp_path, "device": "cpu", **RECIPE, "epochs": 1}
    first = train_references(some.model, some.loader(), instances=[0, 5], count=2, **asked)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(references, "_request", never)
        again = train_references(some.model, some.loader(), instances=[0, 5], count=2, **asked)
        second = train_references(
            some.model, some.loader(), instances=[0, 5], seed=1, count=1, **asked
        )
        others: tuple[dict[str, Any], ...] = ({"instances": [0, 6]}, {"classes": [GONE]})
        for other in others:
            with pytest.raises(AssertionError, match="again"):
                train_references(some.model, some.loader(), count=1, **asked, **other)
        with pytest.raises(AssertionError, match="again"):
            train_references(
                some.model, some.loader(), instances=[0, 5], count=1, **{**asked, "lr": 0.1}
            )
    assert all(same(*pair) for pair in zip(states(first), states(again), strict=True))
    assert same(first[1].state_dict(), second[0].state_dict())


class Printed(nn.Identity):
    """A layer that prints a function, so with an address of this process."""

    def extra_repr(self) -> str:
        return repr(lambda: None)


def test_the_cache_tells_architectures_recipes_and_versions_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = toy("cnn")

    def files(activation: nn.Module, **recipe: Any) -> int:  # noqa: ANN401
        layers = nn.Flatten(), nn.LazyLinear(4), activation, nn.Linear(4, 4)
        model = nn.Sequential(*layers)
        model(some.train.tensors[0][:2])
        train_references(
            model, some.loader(), classes=[GONE], count=1, cache=tmp_path, device="cpu",
            epochs=1, **recipe,
        )  # fmt: skip
        return len(list(tmp_path.glob("*.safetensors")))

    assert files(nn.ReLU()) == 1
    assert files(nn.Tanh()) == 2
    assert files(nn.ReLU()) == 2
    assert files(nn.ReLU(), lr=build("retrain", {}).to_json()["lr"]) == 2  # the default itself
    assert files(Printed()) == files(Printed()) == 3
    monkeypatch.setattr(references, "__version__", "another")
    assert files(nn.ReLU()) == 4


def test_the_budget_leaves_the_rest_out() -> None:
    some, said = toy("cnn"), list[str]()
    found = train_references(
        some.model, some.loader(), classes=[GONE], count=5, minutes=1e-6, device="cpu",
        say=said.append, **{**RECIPE, "epochs": 1},
    )  # fmt: skip
    assert len(found) == 1
    assert said[-1] == "time is up: 1 of 5 reference models"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, BadTarget),
        ({"classes": [1], "instances": [1]}, BadTarget),
        ({"classes": [1], "count": 0}, BadHyperparameter),
        ({"classes": [1], "count": True}, BadHyperparameter),
        ({"classes": [1], "minutes": 0}, BadHyperparameter),
        ({"classes": [1], "cache": "x", "fresh": lambda: nn.Linear(1, 1)}, BadHyperparameter),
        ({"classes": [1], "epochs": -1}, BadHyperparameter),
        ({"classes": [1], "nonsense": 1}, BadHyperparameter),
    ],
)
def test_bad_requests_are_refused(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"train_references|retrain"):
        train_references(toy("cnn").model, toy("cnn").loader(), device="cpu", **given)
