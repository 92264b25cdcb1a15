"""Requests one after the other from one file of statistics, without any retained sample."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Generator

from forgetkit.api import forget
from forgetkit.benchmark.instances import instance_scores
from forgetkit.benchmark.store import Record, Setting, markdown, row, without
from forgetkit.statistics import Statistics

COLUMNS = ("D_f", "D_f so far", "unseen", "D_r", "D_test", "seconds")
REQUESTS = 4


class Forbidden:
    """A loader for samples to keep that nobody may read: a run that tries fails."""

    def __len__(self) -> int:
        self._refuse()

    def __iter__(self) -> Iterator[object]:
        self._refuse()

    @property
    def dataset(self) -> object:
        """What a loader reads from."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AssertionError("a retained sample was read, though the statistics stand in for them")


def incremental_table(
    setting: Setting,
    *,
    size: int,
    requests: int = REQUESTS,
    hyperparameters: Mapping[str, object] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return one row for the original model and one after each request, made with ``pgu``.

    The statistics are collected once over the whole training set; after each request the moments of
    what was forgotten are subtracted and the file is written anew. A retain loader that raises
    when it is read is passed to every run. The seconds of the first row are those of collecting.
    A sequence is one run: it is made again as a whole when it was stopped.

    Args:
        setting: model and data.
        size: random samples a request, no sample twice.
        requests: number of requests.
        hyperparameters: of ``pgu``.
        seed: of the draw and of the runs.
    """
    settings = dict(hyperparameters or {})
    told = "-".join(f"{name}={value}" for name, value in sorted(settings.items())) or "default"
    found = setting.run(
        f"incremental{requests}x{size}-validated-pgu-{told}-s{seed}",
        partial(_sequence, setting, settings, requests, size, seed),
    )
    rows = []
    for number in range(requests + 1):
        after = {name: found[key] for name in COLUMNS if (key := f"{number}/{name}") in found}
        rows.append(row(COLUMNS, [after], request=number, forgotten=number * size))
    return rows


def incremental_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    return markdown(("request", "forgotten"), COLUMNS, rows)


def _sequence(
    setting: Setting, settings: Mapping[str, object], requests: int, size: int, seed: int
) -> Record:
    train = setting.data.train
    order = torch.randperm(len(train), generator=Generator().manual_seed(seed))
    model = copy.deepcopy(setting.model("original", train)[0])
    record: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "statistics.safetensors"
        start = time.perf_counter()
        Statistics.collect(model, setting.loader(train)).save(file)
        seconds = time.perf_counter() - start
        for number in range(requests + 1):
            if number > 0:
                now = order[(number - 1) * size : number * size]
                loader = setting.loader(train.where(now))
                request = forget(model).instances().using("pgu", statistics=str(file), **settings)
                request = request.retain(Forbidden()).validate(setting.loader(setting.few_held_out))
                start = time.perf_counter()
                result = request.seed(seed + number).on(setting.device).run(loader, guard=None)
                Statistics.load(file).without(result, loader).save(file)
                seconds = time.perf_counter() - start
            # before the first request its samples tell where all start
            last = order[max(number - 1, 0) * size : max(number, 1) * size]
            so_far = order[: max(number, 1) * size]
            found = instance_scores(setting, model, train.where(last), without(train, so_far))
            found["D_f so far"] = setting.accuracy(model, train.where(so_far))
            record |= {f"{number}/{name}": value for name, value in found.items()}
            record[f"{number}/seconds"] = seconds
    return record
