"""Patches on training checkpoints: every set of the weights is edited, or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import spread
from torch import Tensor, nn

from forgetkit.checkpoint import read_state_dict
from forgetkit.errors import ModelError, PatchMismatch
from forgetkit.patch import Patch

Weights = dict[str, Tensor]


def network() -> nn.Module:
    return spread(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)))


@pytest.fixture
def start() -> Weights:
    return {name: t.detach().clone() for name, t in network().state_dict().items()}


@pytest.fixture
def patch(start: Weights) -> Patch:
    """A patch of the last layer."""
    after = {name: t * 1.25 if name.startswith("2.") else t for name, t in start.items()}
    return Patch.between(start, after, {"method": "test"})


def deep(weights: Weights) -> Weights:
    return {name: t.clone() for name, t in weights.items()}


def moved(weights: Weights) -> Weights:
    """An average of the weights: other values under the same names."""
    return {name: (t * 1.01).to(t.dtype) for name, t in weights.items()}


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}.{name}": t for name, t in weights.items()}


def parameters(weights: Weights) -> list[Tensor]:
    return [t for name, t in weights.items() if "running" not in name and "num_" not in name]


EDITED: dict[str, tuple[Callable[[Weights], object], tuple[object, ...], str]] = {
    "callback": (
        lambda held: {"state_dict": held, "callbacks": {"EMA": {"ema_state_dict": deep(held)}}},
        ("callbacks", "EMA", "ema_state_dict"),
        "2.weight",
    ),
    "in a list": (
        lambda held: {"state_dict": held, "rounds": [{"epoch": 1}, {"model": deep(held)}]},
        ("rounds", 1, "model"),
        "2.weight",
    ),
    "another prefix": (
        lambda held: {"state_dict": held, "ema": prefixed(deep(held), "ema_model")},
        ("ema",),
        "ema_model.2.weight",
    ),
    "a list of all": (
        lambda held: {"state_dict": held, "ema": {"shadow": list(deep(held).values())}},
        ("ema", "shadow"),
        "7",
    ),
    "at the top": (
        lambda held: {**held, "meta": {"mean": torch.zeros(3)}, "epoch": torch.tensor(3)},
        (),
        "2.weight",
    ),
}


@pytest.mark.parametrize("case", EDITED)
def test_a_set_is_edited_wherever_it_lies(
    tmp_path: Path, start: Weights, patch: Patch, case: str
) -> None:
    make, keys, name = EDITED[case]
    path = tmp_path / "w.ckpt"
    torch.save(make(start), path)
    patch.apply_to_file(path)
    held = torch.load(path, weights_only=True)
    for key in keys:
        held = held[key]
    found = held[int(name)] if isinstance(held, list) else held[name]
    assert torch.equal(found, start["2.weight"] * 1.25)
    patch.revert_file(path)
    with pytest.raises(PatchMismatch, match="already reverted"):
        patch.revert_file(path)


LEFT: dict[str, tuple[Callable[[Weights], object], str]] = {
    "parameters in a list": (
        lambda held: {"shadow": [t.clone() for t in parameters(held)]},
        r"\[other/shadow\].*found a copy named '\[4\]'",
    ),
    "averages under other names": (
        lambda held: {"n_averaged": torch.tensor(2), **prefixed(moved(held), "module")},
        r"\[other\].*found 'module.2.weight' too",
    ),
    "averages in a list": (
        lambda held: {"shadow_params": parameters(moved(held))},
        r"\[other/shadow_params\].*found a list of 6 tensors",
    ),
    "averages deep down": (
        lambda held: {"EMA": [{"state_dict": moved(held)}]},
        r"fit all of them.*\[other/EMA\[0\]/state_dict\].*other values",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_would_keep_the_old_weights_is_refused(
    tmp_path: Path, start: Weights, patch: Patch, case: str
) -> None:
    make, message = LEFT[case]
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": start, "other": make(start)}, path)
    untouched = path.read_bytes()
    with pytest.raises(PatchMismatch, match=message):
        patch.apply_to_file(path)
    assert path.read_bytes() == untouched


def test_an_average_that_was_made_anew_is_no_hindrance(
    tmp_path: Path, start: Weights, patch: Patch
) -> None:
    edited = {name: t * 1.25 if name.startswith("2.") else t for name, t in start.items()}
    ema = {"n_averaged": torch.tensor(2), **prefixed(edited, "module")}
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": start, "ema": ema, "shadow": parameters(edited)}, path)
    patch.apply_to_file(path)
    held = torch.load(path, weights_only=True)
    assert torch.equal(held["state_dict"]["2.bias"], edited["2.bias"])


def as_torch_has_it(moments: Weights) -> dict[str, object]:
    state = {
        number: {"step": torch.tensor(3.0), "exp_avg": moment}
        for number, moment in enumerate(moments.values())
    }
    return {"optimizer_states": [{"state": state, "param_groups": [{"lr": 0.1}]}]}


def by_name(moments: Weights) -> dict[str, object]:
    return {"optim": {"exp_avg": moments, "listed": list(moments.values())}}


def in_other_words(moments: Weights) -> dict[str, object]:
    several = {"g_optimizer": {"m": moments}, "momentum": moments, "grads": list(moments.values())}
    return {"trainer": several}


@pytest.mark.parametrize("store", [as_torch_has_it, by_name, in_other_words])
def test_the_state_of_an_optimizer_is_left_alone(
    tmp_path: Path, start: Weights, patch: Patch, store: Callable[[Weights], dict[str, object]]
) -> None:
    path = tmp_path / "w.ckpt"
    moments = {name: t * 0.1 for name, t in start.items() if name.endswith(("weight", "bias"))}
    torch.save({"state_dict": start, **store(moments)}, path)
    before = torch.load(path, weights_only=True)
    patch.apply_to_file(path)
    held = torch.load(path, weights_only=True)
    assert torch.equal(held.pop("state_dict")["2.weight"], start["2.weight"] * 1.25)
    del before["state_dict"]
    assert str(held) == str(before)
    assert torch.equal(read_state_dict(path)["2.weight"], start["2.weight"] * 1.25)


@pytest.mark.parametrize("beside", ["projector.2.weight", "projector.2.bias"])
def test_another_module_with_a_like_named_tensor_is_no_second_set(
    tmp_path: Path, start: Weights, patch: Patch, beside: str
) -> None:
    path = tmp_path / "w.ckpt"
    other = torch.randn_like(start[beside.removeprefix("projector.")])
    torch.save({"state_dict": {**prefixed(start, "model"), beside: other}, "epoch": 1}, path)
    patch.apply_to_file(path)
    held = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(held["model.2.weight"], start["2.weight"] * 1.25)
    assert torch.equal(held[beside], other)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")  # torch's own
def test_sparse_tensors_are_refused_among_weights_only(
    tmp_path: Path, start: Weights, patch: Patch
) -> None:
    path = tmp_path / "w.ckpt"
    sparse = torch.eye(5).to_sparse()
    torch.save({"state_dict": start, "optimizer": [{"moment": sparse}]}, path)
    patch.apply_to_file(path)
    torch.save({"state_dict": {**start, "graph": sparse}}, path)
    with pytest.raises(ModelError, match="graph is expected to be a dense tensor"):
        patch.apply_to_file(path)


def test_a_model_is_loaded_from_what_lies_at_hand_only(tmp_path: Path, start: Weights) -> None:
    path = tmp_path / "w.ckpt"
    extra = {"EMA": {"weights": moved(start)}, "scales": [torch.ones(1)]}
    torch.save({"callbacks": extra, "state_dict": start}, path)
    assert torch.equal(read_state_dict(path)["2.weight"], start["2.weight"])
    torch.save({"callbacks": extra}, path)
    with pytest.raises(ModelError, match=r"alone or under a key; found .*callbacks/EMA/weights"):
        read_state_dict(path)


def test_a_container_that_holds_itself_is_read_once(
    tmp_path: Path, start: Weights, patch: Patch
) -> None:
    content: dict[str, object] = {"state_dict": start}
    content["again"] = [content, start]
    torch.save(content, tmp_path / "w.ckpt")
    patch.apply_to_file(tmp_path / "w.ckpt")
    assert torch.equal(read_state_dict(tmp_path / "w.ckpt")["2.bias"], start["2.bias"] * 1.25)
