"""Correcting labels: several numbers of samples at once, and a sequence of small requests."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from forgetkit.api import forget
from forgetkit.benchmark.store import Record, Setting, drawn, markdown, row, titled, told, without
from forgetkit.method import build

COLUMNS = ("D_f new", "D_r", "D_test", "seconds")
SIZES = (4, 16, 64, 128)
METHODS = ("correct", "adv", "adv_imp")
REQUESTS, REQUEST_SIZE = 16, 8

Settings = Mapping[str, Mapping[str, object]]


def new_labels(targets: Tensor, classes: int, seed: int) -> Tensor:
    """Return another label for each sample, uniform over the other classes."""
    steps = torch.randint(1, classes, targets.shape, generator=Generator().manual_seed(seed))
    return (targets + steps) % classes


def relabel_table(
    setting: Setting,
    *,
    sizes: Iterable[int] = SIZES,
    methods: Sequence[str] = METHODS,
    hyperparameters: Settings | None = None,
    seeds: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Return one row for each number of random samples that get random new labels, and method.

    Args:
        setting: model and data.
        sizes: numbers of samples.
        methods: slugs.
        hyperparameters: by slug; default the methods' own defaults.
        seeds: of the draws and of the run.
    """
    rows = []
    for size in sizes:
        for slug in ("original", *methods):
            settings = (hyperparameters or {}).get(slug, {})
            runs = [
                setting.run(
                    f"relabel{size}-{slug}-{told(settings) or 'default'}-s{seed}",
                    partial(_run, setting, slug, settings, size, seed),
                )
                for seed in seeds
            ]
            rows.append(row(COLUMNS, runs, samples=size, method=titled(slug, settings)))
    return rows


def continual_table(
    setting: Setting,
    *,
    methods: Sequence[str] = METHODS,
    requests: int = REQUESTS,
    size: int = REQUEST_SIZE,
    hyperparameters: Settings | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return one row for each request and method, requests made one after the other on one model.

    ``D_f new`` is measured on the samples of all requests so far: earlier corrections can be lost
    again. A sequence is one run: it is made again as a whole when it was stopped.
    """
    rows = []
    for slug in methods:
        settings = (hyperparameters or {}).get(slug, {})
        found = setting.run(
            f"continual{requests}x{size}-{slug}-{told(settings) or 'default'}-s{seed}",
            partial(_sequence, setting, slug, settings, requests, size, seed),
        )
        for number in range(1, requests + 1):
            after = {name: found[key] for name in COLUMNS if (key := f"{number}/{name}") in found}
            title = titled(slug, settings)
            rows.append(row(COLUMNS, [after], corrected=number * size, method=title))
    return rows


def relabel_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return either table as Markdown."""
    first = "corrected" if rows and "corrected" in rows[0] else "samples"
    return markdown((first, "method"), COLUMNS, rows)


def _run(
    setting: Setting, slug: str, settings: Mapping[str, object], size: int, seed: int
) -> Record:
    train = setting.data.train
    positions = drawn(size, len(train), seed)
    wanted = new_labels(train.targets[positions], setting.data.num_classes, seed)
    model, seconds = setting.model("original", train)
    if slug != "original":
        model = copy.deepcopy(model)
        seconds = _correct(setting, model, slug, settings, positions, wanted, seed)
    return {**_scores(setting, model, positions, wanted), "seconds": seconds}


def _sequence(
    setting: Setting,
    slug: str,
    settings: Mapping[str, object],
    requests: int,
    size: int,
    seed: int,
) -> Record:
    train = setting.data.train
    order = torch.randperm(len(train), generator=Generator().manual_seed(seed))
    positions = order[: requests * size]
    wanted = new_labels(train.targets[positions], setting.data.num_classes, seed)
    model = copy.deepcopy(setting.model("original", train)[0])
    record: Record = {}
    for number in range(1, requests + 1):
        now, so_far = slice((number - 1) * size, number * size), slice(0, number * size)
        seconds = _correct(
            setting, model, slug, settings, positions[now], wanted[now], seed + number
        )
        found = _scores(setting, model, positions[so_far], wanted[so_far])
        record |= {f"{number}/{name}": value for name, value in found.items()}
        record[f"{number}/seconds"] = seconds
    return record


def _correct(
    setting: Setting,
    model: nn.Module,
    slug: str,
    settings: Mapping[str, object],
    positions: Tensor,
    wanted: Tensor,
    seed: int,
) -> float:
    """Correct the samples in place and return the seconds it took."""
    method = build(slug, settings)
    train = setting.data.train
    request = forget(model).using(method).seed(seed).on(setting.device)
    if "retain" in method.needs:
        labels = dict(zip(positions.tolist(), wanted.tolist(), strict=True))
        request, loader = request.relabel(labels), setting.loader(train)
    else:
        request, loader = request.relabel(wanted.tolist()), setting.loader(train.where(positions))
    start = time.perf_counter()
    request.run(loader, guard=None)
    return time.perf_counter() - start


def _scores(setting: Setting, model: nn.Module, positions: Tensor, wanted: Tensor) -> Record:
    train = setting.data.train
    return {
        "D_f new": setting.accuracy(model, train.where(positions), wanted),
        "D_r": setting.accuracy(model, without(train, positions)),
        "D_test": setting.accuracy(model, setting.data.test),
    }
