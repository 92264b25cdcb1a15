"""A comparison that is killed again and again ends with the table of one that is left alone."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comparing_script import RUNS
from killing_script import KILLS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def without_seconds(folder: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text("utf-8"))))
    return [{name: row[name] for name in row if "seconds" not in name} for row in rows]


def files(folder: Path) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_restarted_the_table_is_the_same(tmp_path: Path) -> None:
    whole, out, report = tmp_path / "whole", tmp_path / "killed", tmp_path / "report.json"
    script = str(Path(__file__).with_name("killing_script.py"))
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script, str(whole), str(out), str(report)], capture_output=True,
        text=True, timeout=500, check=False,
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'adapters'}",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    *kills, end = json.loads(report.read_text("utf-8"))
    assert len(kills) == sum(KILLS.values()) == 10
    assert all(hit for _, hit, _ in kills)
    assert end[1]
    finished: dict[str, int] = {}
    for _, _, found in (*kills, end):
        assert finished.items() <= found.items()  # nothing that had ended was written again
        finished = found
    assert len(finished) == RUNS
    counts = [len(found) for _, _, found in kills]
    assert counts[1] < counts[2] < RUNS == counts[-1]  # before, among and after the runs
    assert without_seconds(out) == without_seconds(whole)
    assert files(out).keys() == files(whole).keys()  # no half-written file is left, and no claim
    same = [name for name in files(whole) if name.startswith(("pictures/acc", "pictures/score"))]
    assert len(same) == 4
    for name in same:
        assert files(out)[name].read_bytes() == files(whole)[name].read_bytes()
