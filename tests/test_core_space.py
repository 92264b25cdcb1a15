from __future__ import annotations

import pytest
import torch

from forgetkit.core_space import CoreSpace, part, projections, protections, shares
from forgetkit.errors import BadHyperparameter

NAMES = ["stem.weight", "layer1.0.conv.weight", "layer1.1.conv.weight", "layer10.conv.weight",
         "fc.weight"]  # fmt: skip


def test_one_share_is_that_of_every_layer() -> None:
    assert shares(0.7, NAMES) == dict.fromkeys(NAMES, 0.7)


def test_the_longest_path_that_fits_decides() -> None:
    given = {"default": 0.1, "layer1": 0.2, "layer1.1": 0.3, "fc.weight": 0.4}
    assert list(shares(given, NAMES).values()) == [0.1, 0.2, 0.3, 0.1, 0.4]
    backwards = dict(reversed(given.items()))
    assert shares(backwards, NAMES) == shares(given, NAMES)


def test_what_is_added_ends_at_one() -> None:
    assert shares({"fc": 0.9, "default": 0.5}, NAMES, 0.2)["fc.weight"] == 1.0
    assert shares({"fc": 0.9, "default": 0.5}, NAMES, 0.2)["stem.weight"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fc": 0.9}, "nothing for 'stem.weight'"),
        ({"layer1.0": 0.9, "layer": 0.5, "default": 0.9}, "'layer', which fits none"),
        ({"fc.bias": 0.9, "default": 0.9}, "'fc.bias', which fits none"),
    ],
)
def test_layers_without_a_share_and_shares_without_a_layer_are_refused(
    given: dict[str, float], says: str
) -> None:
    with pytest.raises(BadHyperparameter, match=says) as caught:
        shares(given, NAMES)
    assert "'default' stands for all that are not named" in str(caught.value)


def test_a_share_of_one_protects_directions_that_no_input_uses() -> None:
    rows = torch.randn(20, 3, dtype=torch.float64) @ torch.randn(3, 6, dtype=torch.float64)
    moment = (rows.T @ rows)[None]
    assert CoreSpace.of(moment, 0.999999999, "energy", 1e-12).ranks.tolist() == [3]
    whole = CoreSpace.of(moment, 1.0, "energy", 1e-12)
    assert whole.ranks.tolist() == [6]
    assert float(whole.away.of(torch.randn(2, 6)).abs().max()) == 0.0


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_projection_comes_back_from_the_state(share: float) -> None:
    rows = torch.randn(50, 8) @ torch.diag(torch.arange(8, 0, -1).float())
    moment, weight = (rows.T @ rows)[None], torch.randn(4, 8)
    state, negative = protections(
        {"a.weight": weight}, {"a.weight": moment}, {"a.weight": share},
        spectrum="sigma", floor=1e-12, regions={},
    )  # fmt: skip
    assert negative == {"a.weight": 0.0}
    assert torch.equal(part(state, "start")["a.weight"], weight)
    assert part(state, "region") == {}
    (name, again), *others = projections(state).items()
    assert (name, others) == ("a.weight", [])
    assert again.basis.dtype == weight.dtype
    space = CoreSpace.of(moment, share, "sigma", 1e-12)
    assert torch.allclose(again.of(weight), space.away.of(weight), atol=1e-6)
