"""Who makes which run: each process takes the next one that nobody has made or is making."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from forgetkit.comparing.accuracies import Ground
from forgetkit.comparing.written import RunFolder, RunRecord
from forgetkit.method import Method

PAUSE = 0.2
"""Seconds between two looks at runs that other processes are making."""


@dataclass(frozen=True)
class Task:
    """One run that the table needs.

    Args:
        ground: target and samples.
        title: the row's name.
        method: ``None`` for the model as it is.
        seed: of every random choice.
        identity: what makes this run this run.
    """

    ground: Ground
    title: str
    method: Method | None
    seed: int
    identity: Mapping[str, object]

    @property
    def key(self) -> tuple[str, str, int]:
        """Target, row and seed."""
        return self.ground.target, self.title, self.seed

    @property
    def name(self) -> str:
        """The same in words, for a file."""
        return f"{self.title}-{self.ground.target}-seed{self.seed}"


def finish(
    tasks: Sequence[Task],
    folder: RunFolder,
    make: Callable[[Task], RunRecord],
    say: Callable[[str], None],
    *,
    tell_read: bool = True,
) -> dict[tuple[str, str, int], RunRecord]:
    """Return every run: those of the folder, and those that this process makes meanwhile.

    Any number of processes may do this at the same time on one folder. A run that another one has
    begun is waited for, and taken over should that process end without a result.

    Args:
        tasks: in the order in which they are begun.
        folder: where runs are found, claimed and kept.
        make: makes one run.
        say: called with one line about each run.
        tell_read: whether to say so of runs that need not be made.
    """
    done: dict[tuple[str, str, int], RunRecord] = {}
    left = list(enumerate(tasks, 1))
    while left:
        busy = []
        for number, task in left:
            run, how = folder.find(task.identity, task.name), "read"
            if run is None:
                with folder.claim(task.identity, task.name) as mine:
                    if not mine:
                        busy.append((number, task))
                        continue
                    # It may have ended between the look and the claim.
                    run = folder.find(task.identity, task.name)
                    if run is None:
                        run = dataclasses.replace(make(task), identity=task.identity)
                        how = run.error or f"{run.scores.get('seconds', 0.0):.1f} s"
                        folder.keep(run, task.name)
            else:
                folder.tidy(task.identity, task.name)
            done[task.key] = run
            if tell_read or how != "read":
                words = f"{task.title}, {task.ground.target}, seed {task.seed}"
                say(f"{number}/{len(tasks)} {words}: {how}")
        if len(busy) == len(left):
            time.sleep(PAUSE)
        left = busy
    return done
