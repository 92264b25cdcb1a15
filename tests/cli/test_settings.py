from __future__ import annotations

import pytest

from forgetkit.cli.arguments import parse_classes, parse_output, parse_settings
from forgetkit.errors import BadHyperparameter


@pytest.mark.parametrize(
    ("method", "word", "expected"),
    [
        ("lau", "epochs=3", {"epochs": 3}),
        ("lau", "alpha=0.4", {"alpha": 0.4}),
        ("lau", "double_softmax=false", {"double_softmax": False}),
        ("pgu", "gamma=none", {"gamma": None}),
        ("pgu", "gamma=0.9", {"gamma": 0.9}),
        ("pgu", "gamma=fc=0.9,default=0.95", {"gamma": {"fc": 0.9, "default": 0.95}}),
        ("amnesiac", "forgotten=17,42", {"forgotten": (17, 42)}),
        ("amnesiac", "forgotten=", {"forgotten": ()}),
        ("adv", "bounds=-1,1", {"bounds": (-1.0, 1.0)}),
        ("adv", "bounds=-2:-1.5:-1,2:2.5:3", {"bounds": ((-2.0, -1.5, -1.0), (2.0, 2.5, 3.0))}),
    ],
)
def test_settings_are_read_as_what_they_are(
    method: str, word: str, expected: dict[str, object]
) -> None:
    assert parse_settings(method, [word]) == expected


@pytest.mark.parametrize("word", ["bounds=1", "bounds=a,b", "epochs=2.5", "epochs", "=3"])
def test_what_cannot_be_read_is_refused(word: str) -> None:
    with pytest.raises(BadHyperparameter, match="expected"):
        parse_settings("adv", [word])


@pytest.mark.parametrize(
    ("word", "value"), [("5", 5), ("-5", -5), ("--5", "--5"), ("-", "-"), ("cat", "cat")]
)
def test_what_is_no_number_is_a_name(word: str, value: int | str) -> None:
    assert parse_classes([f"{word},3"]) == [value, 3]
    assert parse_output(word) == value
