"""Every example runs, warns of nothing, prints a table and stays short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

SHOWS = {
    "compare_methods": ["lau", "neggrad", "random_label", "finetune"],
    "forget_class": ["digit  before  after  undone", "unlearning score"],
    "forget_images": ["before", "after"],
    "own_method": ["Result(uniform", "forget set"],
    "patch_and_undo": ["after apply     False            True", "another model is refused"],
}


def test_every_example_has_a_test() -> None:
    assert {path.stem for path in EXAMPLES} == set(SHOWS)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints_its_table(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for words in SHOWS[path.stem]:
        assert words in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_less_than_sixty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
