from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forgetkit.benchmark import multilabel
from forgetkit.benchmark.datasets import FASHION_CLASSES, digits
from forgetkit.benchmark.multilabel import (
    DIGITS,
    ENTRIES,
    FASHION,
    Sizes,
    markdown,
    material,
    multilabel_table,
)

SMALL = Sizes(train=200, forget=40, held=60, epochs=3)


def test_attributes_follow_from_the_class() -> None:
    assert len(FASHION.table) == len(FASHION_CLASSES)
    targets = FASHION.targets(torch.tensor([9, 2, 8]))
    assert targets.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    even = [label for label, row in enumerate(DIGITS.table) if row[0]]
    above = [label for label, row in enumerate(DIGITS.table) if row[1]]
    assert (even, above) == ([0, 2, 4, 6, 8], [5, 6, 7, 8, 9])


def test_parts_are_disjoint() -> None:
    held = material(digits(), DIGITS, SMALL)
    sizes = [len(part) for part in (held.train, held.test, held.unseen, held.validation)]
    assert sizes == [200, 60, 60, 120]
    images = torch.cat([part.tensors[0] for part in (held.test, held.unseen, held.validation)])
    assert len(images.flatten(1).unique(dim=0)) == 240


@pytest.mark.slow
def test_table_on_a_few_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGETKIT_CACHE", str(tmp_path))
    data = digits()
    rows = multilabel_table(data, "digits", DIGITS, sizes=SMALL, seeds=(0, 1))
    assert [row["title"] for row in rows] == [entry.title for entry in ENTRIES]
    for row in rows:
        accuracy, score = row["accuracy"] / 100, row["FS"]
        assert accuracy > 0.5
        assert row["final"] == pytest.approx((accuracy + 1 - 2 * score) / 2)
        assert 0.0 <= score <= 0.5
        assert row["seconds"] > 0.0
    assert rows[0]["accuracy deviation"] == 0.0  # one original for all seeds
    assert rows[1]["accuracy"] != rows[0]["accuracy"]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    lines = markdown(rows).splitlines()
    assert lines[0] == "| method | accuracy | FS | final | JSD | seconds |"
    assert len(lines) == 2 + len(rows)
    assert "±" in lines[3]

    def forbidden(*_: object) -> float:
        raise AssertionError("trained although the cache has the model")

    monkeypatch.setattr(multilabel, "_fit", forbidden)
    again = multilabel_table(data, "digits", DIGITS, sizes=SMALL, seeds=(0, 1), entries=ENTRIES[:2])
    assert again == rows[:2]
