"""Goals: what constructors accept, names, JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from forgetkit.errors import BadTarget, DataError
from forgetkit.goal import (
    Classes,
    Depoison,
    Goal,
    Instances,
    Relabel,
    class_names,
    resolve_classes,
)

NAMES = ["Shirt", "Trouser", "Pullover", "Dress", "Coat"]


@pytest.mark.parametrize(
    "given", [[3, 1], (3, 1), np.array([3, 1]), torch.tensor([3, 1]), (c for c in (3, 1))]
)
def test_classes_take_any_list_of_numbers(given: object) -> None:
    assert Classes(given).classes == (3, 1)  # type: ignore[arg-type]  # a table of types


def test_numpy_and_torch_scalars_become_plain_integers() -> None:
    goal = Instances([np.int64(4), torch.tensor(2)])  # type: ignore[list-item]  # on purpose
    assert goal.positions == (4, 2)
    assert all(type(position) is int for position in goal.positions)
    assert Classes({4, 2}).classes == (2, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one"),
        ("Dress", "expected a list"),
        (3, "expected a list"),
        (None, "expected a list"),
        ({3: "Dress"}, "expected a list"),
        ([3, 3], "more than once"),
        (["Dress", "Dress"], "more than once"),
        ([-1], "0 or more"),
        ([True], "integer"),
        ([3.0], "integer"),
        ([None], "integer"),
        ([[3]], "integer"),
    ],
)
def test_classes_refuse(given: object, message: str) -> None:
    with pytest.raises(BadTarget, match=message):
        Classes(given)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("made", [Instances, Depoison])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one"),
        ("17", "expected a list"),
        (17, "expected a list"),
        ([1, 1], "more than once"),
        ([-2], "0 or more"),
        ([1.5], "integer"),
        (["17"], "integer"),
        (torch.tensor([True, False]), "torch.nonzero"),
    ],
)
def test_positions_refuse(made: type[Instances], given: object, message: str) -> None:
    with pytest.raises(BadTarget, match=f"{made.kind}: .*{message}"):
        made(given)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one"),
        ([], "at least one"),
        ({17: -4}, "0 or more"),
        ({-17: 4}, "0 or more"),
        ({17: "Coat"}, "integer"),
        ({True: 4}, "integer"),
        ([1.0], "integer"),
        (4, "expected a list"),
    ],
)
def test_relabel_refuses(given: object, message: str) -> None:
    with pytest.raises(BadTarget, match=f"relabel: .*{message}"):
        Relabel(given)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    "goal",
    [
        Classes([3, "Coat"]),
        Instances([17, 42]),
        Instances(),
        Depoison([5]),
        Depoison(),
        Relabel({17: 4, 2: 0}),
        Relabel([1, 0, 2]),
    ],
)
def test_json_round_trip(goal: Goal) -> None:
    again = Goal.from_json(json.loads(json.dumps(goal.to_json())))
    assert again == goal
    assert type(again) is type(goal)
    assert hash(again) == hash(goal)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"goal": "nothing"},
        {"goal": "classes"},
        {"goal": "relabel", "positions": [1], "labels": [1, 2]},
        {"goal": "relabel", "positions": None, "labels": None},
    ],
)
def test_json_that_is_no_goal(record: dict[str, object]) -> None:
    with pytest.raises(BadTarget):
        Goal.from_json(record)


def test_descriptions_are_short() -> None:
    assert Classes([3]).describe(NAMES) == "classes 3 (Dress)"
    assert Classes([3, "Coat"]).describe() == "classes 3, Coat"
    assert Instances(range(20)).describe() == "instances 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
    assert Instances().describe() == "instances (everything in the loader)"
    assert Depoison([1]).describe() == "depoison 1"
    assert Relabel({17: 4}).describe(NAMES) == "relabel 17 to 4 (Coat)"
    assert Relabel([1, 2]).describe() == "relabel everything in the loader (2 samples)"


def test_names_resolve_whatever_their_case() -> None:
    assert resolve_classes(Classes(["dress", 0, " COAT "]), 5, NAMES) == (3, 0, 4)
    assert resolve_classes(Classes(["Tinca tinca"]), 2, ["tench, Tinca tinca", "goldfish"]) == (0,)
    assert resolve_classes(Classes(["crane"]), 3, ["Crane", "crane", "x"]) == (1,)


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (["Dres"], NAMES, "did you mean 'Dress'"),
        (["zebra"], NAMES, "The names are: Shirt, Trouser"),
        (["Dress"], None, "pass the number"),
        ([5], NAMES, "from 0 to 4"),
        ([0, 1, 2, 3, 4], None, "at least one class to be kept"),
        (["Dress", 3], NAMES, "more than once"),
        (["crane"], ["crane", "b", "crane", "d", "e"], "classes 0, 2"),
        (["f"], [*NAMES, "f"], "5 outputs"),
    ],
)
def test_resolving_refuses(wanted: list[int | str], names: list[str] | None, message: str) -> None:
    with pytest.raises(BadTarget, match=message):
        resolve_classes(Classes(wanted), 5, names)


class Named(TensorDataset):
    """Two samples of named classes."""

    def __init__(self, classes: list[str] | None = None, features: object = None) -> None:
        super().__init__(torch.zeros(2, 1), torch.tensor([0, 1]))
        self.classes = classes
        self.features = features


def _model(*names: str) -> nn.Module:
    model = nn.Linear(1, 2)
    model.config = SimpleNamespace(id2label=dict(enumerate(names)))  # type: ignore[assignment]  # as transformers does
    return model


def test_class_names_are_found() -> None:
    bare = nn.Linear(1, 2)
    label = SimpleNamespace(names=["cat", "dog"])
    loader = DataLoader(Subset(Subset(Named(["cat", "dog"]), [0, 1]), [0]))
    assert class_names(bare, loader) == ["cat", "dog"]
    assert class_names(bare, Named(features={"img": 1, "fine_label": label})) == ["cat", "dog"]
    both: ConcatDataset[object] = ConcatDataset([Named(["cat", "dog"]), Named()])
    assert class_names(bare, both) == ["cat", "dog"]
    assert class_names(_model("Katze", "Hund"), loader) == ["Katze", "Hund"]
    assert class_names(_model("LABEL_0", "LABEL_1"), loader) == ["cat", "dog"]
    assert class_names(_model("LABEL_0", "LABEL_1"), [1]) == ["LABEL_0", "LABEL_1"]
    assert class_names(nn.DataParallel(_model("a", "b")), [1]) == ["a", "b"]
    assert class_names(bare, [1]) is None


def test_class_names_in_another_order_are_refused() -> None:
    with pytest.raises(DataError, match="class 0 to be 'dog' in the data and 'cat' in the model"):
        class_names(_model("cat", "dog"), Named(["dog", "cat"]))
