"""Compare methods on a toy model; started alone, by a launcher, or forked by another script."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from torch.utils.data import DataLoader

from forgetkit.comparing import Comparison, compare
from forgetkit.method import build
from forgetkit.testing import Toy, toy

SEEDS = 3
METHODS = (
    build("neggrad", {"epochs": 2}),
    build("lau", {"attack_steps": 2}),
    build("random_label", {"epochs": 2}),
)
RUNS = 1 + SEEDS * len(METHODS)


def compared(problem: Toy, out: Path, said: list[str] | None = None) -> Comparison:
    """Make the table of this script, and keep what is said about its runs."""
    return compare(
        problem.model, problem.loader(), [3], METHODS, SEEDS,
        test=DataLoader(problem.test, 64), out=out, device="cpu",
        say=(lambda _: None) if said is None else said.append,
    )  # fmt: skip


if __name__ == "__main__":
    lines: list[str] = []
    table = compared(toy("cnn"), Path(sys.argv[1]), lines)
    # One file a process: lines that two processes write to one pipe may run into each other.
    Path(sys.argv[2] + os.environ.get("RANK", "")).write_text(
        json.dumps({"table": table.to_json(), "said": lines}), encoding="utf-8"
    )
