"""Forgetting random training samples: every method for samples, several numbers of samples."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from forgetkit.api import forget
from forgetkit.benchmark.datasets import TensorImages
from forgetkit.benchmark.scoring import logits_on
from forgetkit.benchmark.store import Record, Setting, drawn, markdown, row, titled, told, without
from forgetkit.choosing import fits
from forgetkit.method import Method, all_methods, build

NAMES = ("samples", "method")
COLUMNS = ("D_f", "unseen", "D_r", "D_test", "seconds")
SIZES = (64, 128, 256, 512)


def instance_methods() -> list[str]:
    """Return every registered method that forgets samples with the training set at hand alone.

    ``retrain`` is left out: the retrained model has a row of its own.
    """
    return [
        method.card.slug
        for method in all_methods()
        if fits(method, "instances", has_retain=True) and not method.card.fresh
    ]


def instance_table(
    setting: Setting,
    *,
    sizes: Iterable[int] = SIZES,
    methods: Sequence[str] | None = None,
    hyperparameters: Mapping[str, Mapping[str, object]] | None = None,
    label: int | None = None,
    seeds: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Return one row for each number of samples and method, mean and deviation over seeds.

    The samples differ from seed to seed, and so does the retrained model. Every run gets the
    held-out half of the test set to stop on, and is written to the cache when it ends.

    Args:
        setting: model and data.
        sizes: numbers of samples to forget.
        methods: slugs; default all that fit.
        hyperparameters: by slug; default the methods' own defaults.
        label: draw the samples from this class alone; default from all.
        seeds: of the draw and of the run.
    """
    given = hyperparameters or {}
    rows = []
    for size in sizes:
        for slug in (
            "original",
            "retrained",
            *(instance_methods() if methods is None else methods),
        ):
            settings = given.get(slug, {})
            name = f"instances{_drawn_from(size, label)}-{slug}-{told(settings) or 'default'}"
            runs = [
                setting.run(
                    f"{name}-s{seed}",
                    partial(_run, setting, slug, settings, size, label, seed),
                )
                for seed in seeds
            ]
            rows.append(row(COLUMNS, runs, samples=size, method=titled(slug, settings)))
    return rows


def instance_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    return markdown(NAMES, COLUMNS, rows)


def _drawn_from(size: int, label: int | None) -> str:
    """Return what the files in the cache call a draw."""
    return f"{size}" if label is None else f"{size}of{label}"


def _run(
    setting: Setting,
    slug: str,
    settings: Mapping[str, object],
    size: int,
    label: int | None,
    seed: int,
) -> Record:
    train = setting.data.train
    among = torch.arange(len(train)) if label is None else (train.targets == label).nonzero()[:, 0]
    positions = among[drawn(size, len(among), seed)]
    kept = without(train, positions)
    if slug == "retrained":
        model, seconds = setting.model(f"without{_drawn_from(size, label)}-s{seed}", kept)
    else:
        model, seconds = setting.model("original", train)
    if slug not in ("original", "retrained"):
        model = copy.deepcopy(model)
        seconds = _forget(setting, model, build(slug, settings), positions, seed)
    return {**instance_scores(setting, model, train.where(positions), kept), "seconds": seconds}


def _forget(
    setting: Setting, model: nn.Module, method: Method, positions: Tensor, seed: int
) -> float:
    """Forget the samples in place and return the seconds it took."""
    train = setting.data.train
    request = forget(model).using(method).seed(seed).on(setting.device)
    request = request.validate(setting.loader(setting.held_out))
    if "retain" in method.needs:
        request, loader = request.instances(positions.tolist()), setting.loader(train)
    else:
        request, loader = request.instances(), setting.loader(train.where(positions))
    start = time.perf_counter()
    request.run(loader, guard=None)
    return time.perf_counter() - start


def instance_scores(
    setting: Setting, model: nn.Module, lost: TensorImages, kept: TensorImages
) -> Record:
    """Return accuracies in percent; ``unseen`` is on test samples, classes weighted as in D_f."""
    test = setting.measured
    count = torch.bincount(lost.targets, minlength=setting.data.num_classes)
    weights = count[test.targets] / torch.bincount(test.targets)[test.targets]
    right = logits_on(model, test.images, setting.device).argmax(dim=1) == test.targets
    unseen = 100.0 * float((right * weights).sum() / weights.sum())
    return {
        "D_f": setting.accuracy(model, lost),
        "unseen": unseen,
        "D_r": setting.accuracy(model, kept),
        "D_test": setting.accuracy(model, test),
    }
