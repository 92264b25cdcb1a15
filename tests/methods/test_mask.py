"""``mask=`` of every trained method: no more weights move than it says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from forgetkit import forget
from forgetkit.errors import BadHyperparameter
from forgetkit.method import all_methods
from forgetkit.recipe import Trained
from forgetkit.testing import TOYS, toy
from forgetkit.testing.contract import request, short
from forgetkit.testing.trace import changed, weights

TRAINED = [method for method in all_methods() if issubclass(method, Trained)]
SHARE = 0.1


@pytest.mark.slow
@pytest.mark.parametrize("slug", [m.card.slug for m in TRAINED if not m.replaces])
def test_no_more_weights_move_than_the_mask_says(slug: str) -> None:
    method = next(method for method in TRAINED if method.card.slug == slug)
    some = toy("cnn")
    before = weights(some.model)
    request(short(method, "cnn", mask=SHARE), some.model).run(some.loader(), guard=None)
    after = dict(some.model.named_parameters())
    moved = sum(int((before[name] != parameter).sum()) for name, parameter in after.items())
    assert moved <= math.ceil(SHARE * sum(p.numel() for p in after.values()))


@pytest.mark.parametrize("slug", [m.card.slug for m in TRAINED if m.replaces])
def test_a_method_that_replaces_weights_refuses_a_mask(slug: str) -> None:
    method = next(method for method in TRAINED if method.card.slug == slug)
    with pytest.raises(BadHyperparameter, match="mask must be None"):
        method(mask=SHARE)


def test_what_replaces_weights_is_known() -> None:
    assert {m.card.slug for m in TRAINED if m.replaces} == {"retrain", "eu_k", "amnesiac"}


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("goal", ["classes", "depoison"])
@pytest.mark.parametrize(
    "settings", [{}, {"weight_decay": 0.01}, {"optimizer": "adam", "lr": 0.01, "last_lr": 0.01}]
)
def test_pgu_writes_no_masked_weight_beside_its_steps(
    settings: dict[str, Any], goal: str, kind: str
) -> None:
    """It projects displacements and folds a trust region in, which reach every entry of a row."""
    some = toy(kind)
    before = weights(some.model)
    start = forget(some.model)
    asked = start.classes([3]) if goal == "classes" else start.depoison(range(20))
    shared: dict[str, Any] = {
        "mask": SHARE, "gamma": 0.5, "epochs": 3, "lr": 0.1, "last_lr": 0.1, "trust_rate": 1.0,
        "batch_size": 16, "target": 0.0,
    }  # fmt: skip
    asked.using("pgu", **(shared | settings)).on("cpu").run(some.loader(), guard=None)
    after = dict(some.model.named_parameters())
    moved = sum(int((before[name] != parameter).sum()) for name, parameter in after.items())
    assert 0 < moved <= math.ceil(SHARE * sum(p.numel() for p in after.values()))


def test_what_pgu_trains_through_its_trust_region_is_what_the_mask_lets_it_write() -> None:
    some = toy("cnn")
    before = weights(some.model)
    settings: dict[str, Any] = {"mask": 0.0, "lr": 0.1, "last_lr": 0.1, "trust_rate": 5.0}
    request = forget(some.model).depoison(range(20)).using("pgu", epochs=3, **settings)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []
    losses = [row["loss_forget"] for row in result.history]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)  # sums of batches in another order
