"""CF-k: what stays, what moves, and the two ends of k."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetkit import forget
from forgetkit.errors import BadHyperparameter
from forgetkit.result import Result
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, weights


def run(some: Toy, /, *, slug: str = "cf_k", **settings: Any) -> Result:  # noqa: ANN401
    chosen = {"epochs": 1, "lr": 0.05, **settings}
    request = forget(some.model).classes([3]).using(slug, **chosen).on("cpu").seed(0)
    return request.run(some.loader(), guard=None)


@pytest.mark.parametrize(
    ("kind", "k", "unit", "moving"),
    [
        ("cnn", 1, "layer", {"fc"}),
        ("cnn", 2, "layer", {"body.4", "body.5", "fc"}),
        ("cnn", 1, "block", {"fc"}),
        ("vit", 1, "layer", {"head"}),
        ("vit", 2, "layer", {"block.linear2", "norm", "head"}),
        ("vit", 2, "block", {"block", "norm", "head"}),
    ],
)
def test_everything_before_the_split_keeps_its_bits(
    kind: str, k: int, unit: str, moving: set[str]
) -> None:
    some = toy(kind)
    before = weights(some.model)
    result = run(some, k=k, unit=unit)
    moved = changed(before, weights(some.model))
    outside = [n for n in moved if not any(n.startswith(f"{part}.") for part in moving)]
    assert outside == []
    for part in moving:
        assert any(name.startswith(f"{part}.") for name in moved)
    assert f"the last {k} {unit}s: " in result.notes[0]


def test_the_layers_are_told_by_name() -> None:
    notes = run(toy("vit"), k=3).notes
    assert notes[0] == "cf_k trains the last 3 layers: block.linear1, block.linear2, head"


def test_all_layers_is_finetune_bit_for_bit() -> None:
    shared: dict[str, Any] = {
        "epochs": 2, "lr": 0.05, "weight_decay": 5e-4, "batch_size": 64, "momentum": 0.9,
    }  # fmt: skip
    for kind, k in (("cnn", 3), ("vit", 6)):
        one, other = toy(kind), toy(kind)
        run(one, k=k, **shared)
        run(other, slug="finetune", **shared)
        assert changed(weights(one.model), weights(other.model)) == []


def test_frozen_statistics_within_the_layers_keep_their_bits() -> None:
    some = toy("cnn")
    before = weights(some.model)
    run(some, k=2, bn="frozen")
    moved = changed(before, weights(some.model))
    assert "body.5.running_mean" not in moved
    assert "body.5.weight" in moved


def test_more_layers_than_there_are_is_refused_before_anything_moves() -> None:
    some = toy("cnn")
    before = weights(some.model)
    with pytest.raises(BadHyperparameter, match=r"at most 3, the number of layers"):
        run(some, k=4)
    assert changed(before, weights(some.model)) == []


class Split(nn.Module):
    """Features that do not move, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 5)
        self.fc = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(images.flatten(1)).tanh())
        return logits


def test_equals_a_plain_loop_over_stored_features() -> None:
    some = toy("cnn")
    torch.manual_seed(1)
    model = Split()
    images, labels = (t[some.train.tensors[1] != 3] for t in some.train.tensors)
    with torch.no_grad():
        features = model.body(images.flatten(1)).tanh()
    head = copy.deepcopy(model.fc)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, 0.9, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    request = (
        forget(model).classes([3]).on("cpu").using("cf_k", k=1, epochs=3, lr=0.1, batch_size=256)
    )
    request.run(some.loader(), guard=None)
    assert torch.allclose(model.fc.weight, head.weight, atol=1e-5)
    assert torch.allclose(model.fc.bias, head.bias, atol=1e-5)
