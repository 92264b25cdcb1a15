"""Fork comparisons and kill them at random moments; the libraries are loaded once, by the parent.

Arguments: a folder for the undisturbed run, one for the killed runs, and a file for what happened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from comparing_script import RUNS, compared

from forgetkit.comparing import Comparison, RunRecord
from forgetkit.testing import Toy, toy

KILLS = {"start": 2, "runs": 5, "files": 3}
ATTEMPTS = 5
"""Of a kill: the child may end a moment before it."""


def records(out: Path) -> dict[str, int]:
    """Return by name when each finished run was written."""
    return {file.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}


def table_written(out: Path) -> int:
    """Return when the first of the final files was written, 0 for never."""
    file = out / "table.md"
    return file.stat().st_mtime_ns if file.exists() else 0


def forked(problem: Toy, out: Path) -> int:
    """Start a comparison in a child and return its number."""
    child = os.fork()
    if child:
        return child
    try:
        compared(problem, out)
        os._exit(0)
    finally:
        os._exit(1)


def ended(child: int) -> bool:
    """Say whether a child has ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def awaited(child: int, sign: Callable[[], bool]) -> float:
    """Wait for a sign, or the end of the child; return the seconds that it took."""
    begun = time.perf_counter()
    while not sign() and not ended(child):
        time.sleep(0.001)
    return time.perf_counter() - begun


def undisturbed(problem: Toy, out: Path) -> dict[str, float]:
    """Run to the end and return how long each phase takes at most."""
    child = forked(problem, out)
    start = awaited(child, lambda: bool(records(out)))
    runs = awaited(child, lambda: table_written(out) > 0)
    files = awaited(child, lambda: False)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the undisturbed run failed")
    return {"start": start, "runs": runs / RUNS, "files": files}


def killed(problem: Toy, out: Path, phase: str, delay: float) -> bool:
    """Start a comparison, kill it a while into a phase, and return whether that ended it."""
    before, written = len(records(out)), table_written(out)
    child = forked(problem, out)
    if phase == "runs":
        awaited(child, lambda: len(records(out)) >= min(before + 1, RUNS))
    elif phase == "files":
        awaited(child, lambda: table_written(out) > written)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def main(whole: Path, out: Path, report: Path) -> None:
    torch.set_num_threads(1)
    problem = toy("cnn")
    # What is loaded on first use, above all for pictures, is loaded before anything is timed.
    Comparison((RunRecord("a", {}, {}, "a", 0, {"US": 0.5}),)).save(report.parent / "first")
    longest = undisturbed(problem, whole)
    moments = random.Random(0)  # noqa: S311  no secret
    happened = []
    for phase, count in KILLS.items():
        for _ in range(count):
            hit = any(
                killed(problem, out, phase, moments.uniform(0, 0.9) * longest[phase])
                for _ in range(ATTEMPTS)
            )
            happened.append([phase, hit, records(out)])
    child = forked(problem, out)
    failed = os.waitpid(child, 0)[1]
    happened.append(["end", not failed, records(out)])
    report.write_text(json.dumps(happened), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
