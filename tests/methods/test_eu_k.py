"""EU-k: what is reset, what stays, and that all layers are a retraining."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from forgetkit import forget
from forgetkit.result import Result
from forgetkit.testing import TOYS, toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, weights


def run(some: Toy, /, *, slug: str = "eu_k", **settings: Any) -> Result:  # noqa: ANN401
    chosen = {"epochs": 1, "lr": 0.05, **settings}
    request = forget(some.model).classes([3]).using(slug, **chosen).on("cpu").seed(0)
    return request.run(some.loader(), guard=None)


@pytest.mark.parametrize(
    ("kind", "k", "unit", "moving"),
    [
        ("cnn", 1, "layer", {"fc"}),
        ("cnn", 2, "layer", {"body.4", "body.5", "fc"}),
        ("vit", 3, "layer", {"block.linear1", "block.linear2", "norm", "head"}),
        ("vit", 1, "block", {"head"}),
    ],
)
def test_everything_before_the_split_keeps_its_bits(
    kind: str, k: int, unit: str, moving: set[str]
) -> None:
    some = toy(kind)
    before = weights(some.model)
    run(some, k=k, unit=unit)
    moved = changed(before, weights(some.model))
    assert [n for n in moved if not any(n.startswith(f"{part}.") for part in moving)] == []
    for part in moving:
        assert any(name.startswith(f"{part}.") for name in moved)


def untrained(some: Toy, k: int) -> dict[str, torch.Tensor]:
    """Return the weights before the first step: a learning rate of 0 keeps them there."""
    run(some, k=k, lr=0.0, bn="frozen")
    return weights(some.model)


def test_every_layer_is_fresh_before_the_first_step_normalisation_included() -> None:
    some = toy("cnn")
    trained = weights(some.model)
    fresh = untrained(some, 2)
    assert set(changed(trained, fresh)) == {
        "body.4.weight", "body.5.weight", "body.5.bias", "body.5.running_mean",
        "body.5.running_var", "body.5.num_batches_tracked", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert torch.equal(fresh["body.5.weight"], torch.ones(16))
    assert torch.equal(fresh["body.5.bias"], torch.zeros(16))
    assert torch.equal(fresh["body.5.running_mean"], torch.zeros(16))
    assert torch.equal(fresh["body.5.running_var"], torch.ones(16))


def test_the_head_is_always_among_them() -> None:
    for kind, head in (("cnn", "fc.weight"), ("vit", "head.weight")):
        some = toy(kind)
        trained = weights(some.model)
        assert head in changed(trained, untrained(some, 1))


def test_fresh_weights_are_those_of_the_factory() -> None:
    some = toy("cnn")
    torch.manual_seed(11)
    made = TOYS["cnn"]()
    request = forget(some.model).classes([3]).on("cpu").fresh(lambda: copy.deepcopy(made))
    request.using("eu_k", k=1, epochs=1, lr=0.0, bn="frozen").run(some.loader(), guard=None)
    now, expected = weights(some.model), weights(made)
    assert torch.equal(now["fc.weight"], expected["fc.weight"])
    assert not torch.equal(now["body.4.weight"], expected["body.4.weight"])


@pytest.mark.parametrize(("kind", "k"), [("cnn", 3), ("vit", 6)])
def test_all_layers_is_a_retraining_from_the_same_seed(kind: str, k: int) -> None:
    shared: dict[str, Any] = {
        "epochs": 2, "lr": 0.05, "weight_decay": 5e-4, "batch_size": 32, "schedule": "constant",
        "optimizer": "sgd",
    }  # fmt: skip
    one, other = toy(kind), toy(kind)
    for some in (one, other):  # dropout draws from the global state, which a reset moves
        for module in some.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    run(one, k=k, **shared)
    run(other, slug="retrain", **shared)
    assert changed(weights(one.model), weights(other.model)) == []


def test_the_layers_are_told_by_name() -> None:
    assert run(toy("cnn"), k=2).notes == ["eu_k resets and trains the last 2 layers: body.4, fc"]


@pytest.mark.parametrize("slug", ["eu_k", "cf_k", "retrain"])
def test_frozen_normalisation_keeps_its_running_statistics(slug: str) -> None:
    some = toy("cnn")
    norms = {n: m for n, m in some.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    last = list(norms)[-1]
    for parameter in norms[last].parameters():
        parameter.requires_grad_(False)
    before = {n: b.clone() for n, b in some.model.named_buffers()}
    settings = {} if slug == "retrain" else {"k": 2}
    (note,) = run(some, slug=slug, epochs=1, **settings).notes
    moved = {n for n, b in some.model.named_buffers() if not torch.equal(b, before[n])}
    assert not any(name.startswith(f"{last}.") for name in moved)
    assert f"{last}.running_mean" in note


def test_frozen_layers_among_them_are_told() -> None:
    some = toy("cnn")
    dict(some.model.named_parameters())["fc.bias"].requires_grad_(False)
    (note,) = run(some, k=2).notes
    assert note.endswith(
        "1 frozen tensors stay as they are, with what they know of the forget set: fc.bias"
    )
