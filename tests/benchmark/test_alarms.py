"""Honest models under audit: who is compared with whom, what counts as an alarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetkit.benchmark import alarms
from forgetkit.metric import Finding


def test_only_verdicts_that_say_something_count() -> None:
    findings = [
        Finding("accuracy", 0.0, verdict=verdict)
        for verdict in ("residual", "over-forgotten", "as retrain", "not decidable", "not run")
    ]
    assert alarms.counted(findings) == alarms.AlarmCount(alarms=2, decided=3)


@pytest.mark.slow
def test_every_honest_model_is_audited_once_with_each_number_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    audits = alarms.honest_audits(3, references=(1, 2), level="quick")
    assert {count: len(several) for count, several in audits.items()} == {1: 3, 2: 3}
    prints = [found.fingerprints for found in audits[2]]
    own = [one["model"] for one in prints]
    assert len(set(map(str, own))) == 3
    assert [one["retrained"] for one in prints] == [
        [own[1], own[2]], [own[2], own[0]], [own[0], own[1]],
    ]  # fmt: skip
    table = alarms.alarm_markdown(audits).splitlines()
    assert table[0] == "| check | 1 retrained | 2 retrained |"
    accuracy = next(row for row in table if row.startswith("| Accuracy by set |"))
    assert accuracy.endswith(" of 3 |")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("audited twice")

    monkeypatch.setattr(alarms, "audit", never)
    assert alarms.alarm_markdown(alarms.honest_audits(3, (1, 2), "quick")).splitlines() == table
