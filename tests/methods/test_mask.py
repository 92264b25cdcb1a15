"""``mask=`` of every trained method: no more weights move than it says."""

from __future__ import annotations

import math

import pytest

from forgetkit.errors import BadHyperparameter
from forgetkit.method import all_methods
from forgetkit.recipe import Trained
from forgetkit.testing import toy
from forgetkit.testing.contract import request, short
from forgetkit.testing.trace import weights

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
