"""Numbers that may differ by layer: what a field accepts, and how a command line writes them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forgetkit import Statistics
from forgetkit.cli.arguments import parse_settings
from forgetkit.errors import BadHyperparameter
from forgetkit.method import build, from_json
from forgetkit.testing import toy

BY_LAYER = {"fc": 0.5, "default": 0.9}


def test_a_dict_by_layer_survives_json() -> None:
    method = build("pgu", {"gamma": BY_LAYER})
    assert method.hyperparameters()["gamma"] == BY_LAYER
    assert from_json(json.loads(json.dumps(method.to_json()))) == method


def test_numpy_scalars_are_the_numbers_that_they_are() -> None:
    given = {
        "epochs": np.int64(3),
        "lr": np.float32(0.5),
        "dropout": np.bool_(True),
        "gamma": {"fc": np.float32(0.5)},
    }
    method = build("pgu", given)
    assert method == build("pgu", {"epochs": 3, "lr": 0.5, "dropout": True, "gamma": {"fc": 0.5}})
    assert from_json(json.loads(json.dumps(method.to_json()))) == method
    with pytest.raises(BadHyperparameter, match=r"epochs must be an integer .* found 2.5"):
        build("pgu", {"epochs": np.float64(2.5)})


@pytest.mark.parametrize(
    "wrong",
    [{}, {"fc": 1.5}, {"fc": "0.5"}, {"fc": True}, {"fc": None}, {3: 0.5}, [0.5], {"fc": {}}],
)
def test_other_dicts_are_refused(wrong: object) -> None:
    with pytest.raises(BadHyperparameter, match=r"gamma must be a number in \[0, 1\], or such"):
        build("pgu", {"gamma": wrong})


def test_a_plain_number_takes_no_dict() -> None:
    with pytest.raises(BadHyperparameter, match="epsilon"):
        build("pgu", {"epsilon": {"fc": 0.5}})


def test_an_artefact_that_is_not_saved_yet_says_how() -> None:
    statistics = Statistics.collect(toy("cnn").model, toy("cnn").loader())
    with pytest.raises(BadHyperparameter, match=r"call its save\(path\) and pass that path"):
        build("pgu", {"statistics": statistics})
    with pytest.raises(BadHyperparameter) as caught:
        build("pgu", {"statistics": 3})
    assert "save(path)" not in str(caught.value)


def test_the_command_line_writes_it_in_one_word() -> None:
    assert parse_settings("pgu", ["gamma=fc=0.5,default=0.9"]) == {"gamma": BY_LAYER}
    assert parse_settings("pgu", ["gamma=0.5"]) == {"gamma": 0.5}
    for wrong in ("gamma=fc=0.5,default", "gamma=fc=much", "gamma=fc="):
        with pytest.raises(BadHyperparameter, match="--set gamma=fc="):
            parse_settings("pgu", [wrong])
    with pytest.raises(BadHyperparameter, match=r"--set lr=fc=0\.5"):
        parse_settings("pgu", ["lr=fc=0.5"])


CHANNELS = ((-2.0, -1.5, 0.0), (2.0, 2.5, 1.0))


def test_a_range_by_channel_survives_json_and_the_command_line() -> None:
    method = build("adv", {"bounds": CHANNELS})
    assert from_json(json.loads(json.dumps(method.to_json()))) == method
    assert parse_settings("adv", ["bounds=-2:-1.5:0,2:2.5:1"]) == {"bounds": CHANNELS}
    assert parse_settings("adv", ["bounds=0,1"]) == {"bounds": (0.0, 1.0)}


@pytest.mark.parametrize(
    "wrong",
    [
        ((0.0,), (1.0, 2.0)),
        ((0.0, 3.0), (1.0, 2.0)),
        ((), ()),
        (0.0, (1.0,)),
        ((0.0, "a"), (1.0, 2.0)),
    ],
)
def test_other_ranges_by_channel_are_refused(wrong: object) -> None:
    with pytest.raises(BadHyperparameter, match="each one number or a tuple of one for each"):
        build("adv", {"bounds": wrong})
    with pytest.raises(BadHyperparameter, match="a pair"):
        build("lau", {"attack_clamp": CHANNELS})
