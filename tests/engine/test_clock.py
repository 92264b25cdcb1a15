from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace

import pytest

from forgetkit import forget
from forgetkit.engine import clock
from forgetkit.testing import toy


def test_a_phase_within_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 4.0, 8.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    timed = clock.Clock()
    with timed("train"):
        with timed("check"):
            assert timed.phase == "check"
        assert timed.phase == "train"
        with timed("check"):
            pass
    with timed("finish"):
        pass
    assert timed.seconds == {"train": 4.0, "check": 6.0, "finish": 1.0}
    assert timed.phase == "finish"


def test_a_phase_that_breaks_is_remembered() -> None:
    timed = clock.Clock()
    with pytest.raises(ZeroDivisionError), timed("train"), timed("check"):
        raise ZeroDivisionError
    assert timed.phase == "check"
    assert set(timed.seconds) == {"train", "check"}


def test_looks_at_accuracies_are_not_time_of_training() -> None:
    some = toy("cnn")
    began = time.perf_counter()
    request = forget(some.model).classes([3]).using("neggrad", epochs=2, check_every=1)
    result = request.on("cpu").run(some.loader(), guard=None)
    spent = time.perf_counter() - began
    assert result.seconds["check"] > 0.0
    assert result.seconds["train"] > 0.0
    assert sum(result.seconds.values()) <= spent
    assert all(later["epoch"] > row["epoch"] for row, later in pairwise(result.history))
