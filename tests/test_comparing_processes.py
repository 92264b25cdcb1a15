"""Several processes on one folder: every run once, one table, and claims that die with them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing_script import RUNS
from torch.utils.data import DataLoader

from forgetkit.comparing import compare
from forgetkit.comparing.accuracies import Ground
from forgetkit.comparing.sharing import Task, finish
from forgetkit.comparing.written import RunFolder, RunRecord
from forgetkit.engine.place import alone, choose_place
from forgetkit.goal import Classes
from forgetkit.testing import toy

ROOT = Path(__file__).parents[1]
HOLDS_A_CLAIM = """
import sys, time
from pathlib import Path
from forgetkit.comparing.written import RunFolder
with RunFolder(Path(sys.argv[1]), "model").claim({"seed": 0}, "a"):
    print("claimed", flush=True)
    time.sleep(100)
"""


def environment() -> dict[str, str]:
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}",
    }  # fmt: skip


def started(launcher: Sequence[str], out: Path, table: Path) -> None:
    script = str(Path(__file__).with_name("comparing_script.py"))
    done = subprocess.run(
        [*launcher, script, str(out), str(table)], env=environment(), capture_output=True,
        text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def without_seconds(record: dict[str, list[dict[str, object]]]) -> str:
    """Return the rows as text, all but the times."""
    return re.sub(r'"seconds": [^,}]*,? ?', "", json.dumps(record["rows"]))


def number_of_a_run_made(line: str) -> int:
    """Return it for a line with seconds, 0 for a run of another process."""
    found = re.fullmatch(r"(\d+)/\d+ .*: [\d.]+ s", line)
    return int(found.group(1)) if found else 0


@pytest.mark.slow
def test_two_processes_of_a_launch_make_every_run_once_and_agree(tmp_path: Path) -> None:
    # With --cpu this launcher starts a second process through MPI only; told that there are several
    # devices and, by the environment, to use the processor instead, it starts two by itself.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    started(launcher, tmp_path / "two", tmp_path / "two.json")
    ends = [json.loads((tmp_path / f"two.json{rank}").read_text()) for rank in "01"]
    made = [[run for line in end["said"] if (run := number_of_a_run_made(line))] for end in ends]
    assert sorted(made[0] + made[1]) == list(range(1, RUNS + 1))
    assert all(made)
    tables = [end["table"] for end in ends]
    assert tables[0] == tables[1]
    started([sys.executable], tmp_path / "one", tmp_path / "one.json")
    alone_made = json.loads((tmp_path / "one.json").read_text())["table"]
    assert without_seconds(tables[0]) == without_seconds(alone_made)
    files = {str(file.relative_to(tmp_path / "one")) for file in (tmp_path / "one").rglob("*")}
    assert files == {str(f.relative_to(tmp_path / "two")) for f in (tmp_path / "two").rglob("*")}


def task(seed: int) -> Task:
    return Task(Ground(Classes([3]), "classes 3", {}), "a", None, seed, {"seed": seed})


def record(of: Task) -> RunRecord:
    return RunRecord(of.title, {}, {}, of.ground.target, of.seed, {"seconds": 1.0})


def test_a_claimed_run_is_left_to_its_process_and_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = (RunFolder(tmp_path, "model") for _ in range(2))
    made: list[int] = []
    claim = other.claim(task(0).identity, task(0).name)
    assert claim.__enter__()

    def the_other_one_ends(_: float) -> None:
        other.keep(RunRecord("b", {}, {}, "", 0, identity=task(0).identity), task(0).name)
        claim.__exit__(None, None, None)

    monkeypatch.setattr("forgetkit.comparing.sharing.time.sleep", the_other_one_ends)

    def make(of: Task) -> RunRecord:
        made.append(of.seed)
        return record(of)

    said: list[str] = []
    done = finish([task(0), task(1)], folder, make, said.append)
    assert made == [1]
    assert done["classes 3", "a", 0].title == "b"
    assert [line.rpartition(": ")[2] for line in said] == ["1.0 s", "read"]
    assert [file.name for file in tmp_path.rglob("*.lock")] == [".lock"]


def test_a_run_whose_process_gave_up_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path, "model")
    claim = RunFolder(tmp_path, "model").claim(task(0).identity, task(0).name)
    assert claim.__enter__()
    monkeypatch.setattr(
        "forgetkit.comparing.sharing.time.sleep", lambda _: claim.__exit__(None, None, None)
    )
    done = finish([task(0)], folder, record, lambda _: None)
    assert done["classes 3", "a", 0].scores == {"seconds": 1.0}


@pytest.mark.slow
def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_CLAIM, str(tmp_path)], env=environment(), text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        folder = RunFolder(tmp_path, "model")
        with folder.claim({"seed": 0}, "a") as mine:
            assert not mine
        process.send_signal(signal.SIGKILL)
    with folder.claim({"seed": 0}, "a") as mine:
        assert mine


def test_alone_a_process_has_its_own_device_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Second:
        mixed_precision, device, process_index, num_processes = "no", "cpu", 1, 2

    second: Any = Second()
    assert choose_place(None, None, second).shard == (1, 2)
    with alone():
        found = choose_place(None, None, second)
    assert found.shard == (0, 1)
    assert found.device == torch.device("cpu")
    assert choose_place(None, None, second).shard == (1, 2)


def test_what_failed_is_tried_again_once(tmp_path: Path) -> None:
    problem = toy("cnn")
    said: list[str] = []
    for _ in range(2):
        compare(
            problem.model, problem.forget_loader(), [3], ["finetune"], 1, out=tmp_path,
            device="cpu", retry=True, test=DataLoader(problem.test, 64), say=said.append,
        )  # fmt: skip
    assert [line.partition(" ")[0] for line in said] == ["1/2", "2/2"] * 2
    assert said[2].endswith(": read")
    assert said[1] == said[3]
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2
