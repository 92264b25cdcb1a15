"""Several records on one page, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import record
from typer.testing import CliRunner

from forgetkit.auditing.readings import HIDDEN
from forgetkit.cli import app
from forgetkit.errors import DataError
from forgetkit.report import write_comparison


def test_columns_are_records_and_rows_are_metrics(tmp_path: Path) -> None:
    other = record("suli")
    other["findings"] = other["findings"][:3]
    page = write_comparison([record(), other, other], tmp_path)
    text = page.with_suffix(".md").read_text(encoding="utf-8").replace("\N{EN DASH}", "-")
    assert "| what | lau | suli | suli (2) |" in text
    assert "| unlearning score | 0.8125 | 0.8125 | 0.8125 |" in text
    assert "| attack AUC, retrained | 0.5 | - | - |" in text
    assert "| probe excess | 0.3 | - | - |" in text  # over all retrained models, not the first
    assert "| steps to relearn, retrained | ∞ | - | - |" in text
    assert "not run | - | - |" in text
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "accuracy-by-set.csv", "accuracy-by-set.svg", "radar.csv", "radar.svg",
    ]  # fmt: skip
    assert page.read_text(encoding="utf-8").count("<figure") == 2


def test_accuracies_behind_a_masked_head_are_marked(tmp_path: Path) -> None:
    masked = record("filtered")
    masked["head_masked"] = True
    accuracy, _, us, *_ = masked["findings"]
    accuracy["note"] = HIDDEN
    us["note"] = f"forget accuracy is {HIDDEN}"
    page = write_comparison([record(), masked], tmp_path)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "| accuracy: kept, test | 0.75 | 0.75 |" in text
    assert "| accuracy: forgotten, test | 0 | 0 (head masked) |" in text
    assert "| unlearning score | 0.8125 | 0.8125 (head masked) |" in text
    assert "| 0 [0, 0.0602], n = 60 | 0 (head masked) [0, 0.0602], n = 60 |" in text
    assert "Forgotten 0 by construction (head masked): filtered." in text
    assert page.read_text(encoding="utf-8").count("0 (head masked)") == 2


def test_one_record_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at least two to compare, found 1"):
        write_comparison([record()], tmp_path)


@pytest.mark.slow
def test_the_command_writes_a_page_of_one_and_of_several(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(record(name)), encoding="utf-8")
    page = tmp_path / "out" / "page.html"
    done = CliRunner().invoke(app, ["report", f"{tmp_path}/a.json", "--out", str(page), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"page": str(page), "markdown": str(page.with_suffix(".md"))}
    assert "Audit of a" in page.read_text(encoding="utf-8")
    both = [f"{tmp_path}/a.json", f"{tmp_path}/b.json"]
    done = CliRunner().invoke(app, ["report", *both, "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "Audits side by side" in page.read_text(encoding="utf-8")


def test_the_command_refuses_what_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    done = CliRunner().invoke(app, ["report", f"{tmp_path}/a.json", "--out", f"{tmp_path}/r.html"])
    assert done.exit_code == 2
    assert not (tmp_path / "r.html").exists()
