"""The class-forgetting table: methods x seeds on one original model, resumable."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from forgetkit.adapting import adapt
from forgetkit.api import forget
from forgetkit.benchmark.datasets import Pair, TensorImages
from forgetkit.benchmark.train import RECIPES, cache_root, trained
from forgetkit.losses import unlearning_score
from forgetkit.method import find
from forgetkit.view import ModelView

COLUMNS = ("D_r", "D_f", "D_tr", "D_tf", "US", "seconds")


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Args:
        title: what the row is called.
        method: registered name, or ``"original"`` or ``"retrained"``.
        hyperparameters: for ``using``.
        loader: ``"forget"`` hands over D_f alone, ``"train"`` the whole training set.
        seeded: whether different seeds give different results.
    """

    title: str
    method: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    loader: str = "forget"
    seeded: bool = True


MASK = Entry("class masked in the head", "linear_filtration", {"form": "naive"}, seeded=False)
ENTRIES = (
    Entry("original", "original", seeded=False),
    Entry("retrained", "retrained", seeded=False),
    MASK,
    Entry("finetune", "finetune", {"epochs": 2}, "train"),
    Entry("neggrad", "neggrad"),
    Entry("random_label", "random_label"),
    Entry("linear_filtration", "linear_filtration", loader="train", seeded=False),
    Entry("lau", "lau"),
    Entry("lau, full PGD", "lau", {"attack": "full"}),
    Entry("lau, without double softmax", "lau", {"double_softmax": False}),
    Entry("lau, 10 % of D_f", "lau", {"share": 0.1}),
)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorImages, device: str = "cpu") -> float:
    """Return the model's accuracy on a data set, in percent."""
    model.eval()
    right = 0
    for images, labels in zip(data.images.split(512), data.targets.split(512), strict=True):
        output = model(images.to(device))
        logits: Tensor = getattr(output, "logits", output)
        right += int((logits.argmax(dim=1).cpu() == labels).sum())
    return 100.0 * right / max(len(data), 1)


def scores(model: nn.Module, data: Pair, label: int, device: str = "cpu") -> dict[str, float]:
    """Return D_r, D_f, D_tr, D_tf in percent and US."""
    parts: dict[str, float] = {}
    for names, source in ((("D_r", "D_f"), data.train), (("D_tr", "D_tf"), data.test)):
        for name, own in zip(
            names, (source.targets != label, source.targets == label), strict=True
        ):
            parts[name] = accuracy(model, source.where(own), device)
    parts["US"] = unlearning_score(parts["D_tr"] / 100, parts["D_tf"] / 100)
    return parts


class FeatureData:
    """A data set as the head of one original model sees it, for edits of the head alone."""

    def __init__(self, model: nn.Module, data: Pair) -> None:
        view = adapt(model.eval(), data.train.images[:2])
        with torch.no_grad():
            self.pair = Pair(_features(view, data.train), _features(view, data.test))


def _features(view: ModelView, data: TensorImages) -> TensorImages:
    rows = [view.features(images) for images in data.images.split(512)]
    return TensorImages(torch.cat(rows), data.targets, tuple(data.classes))


class Head(nn.Module):
    """The head of a split model as a module of its own."""

    def __init__(self, view: ModelView) -> None:
        super().__init__()
        self._view = view

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        return self._view.head(features)


def run_entry(
    entry: Entry,
    name: str,
    data: Pair,
    data_name: str,
    label: int,
    seed: int,
    device: str,
    features: FeatureData,
) -> dict[str, float]:
    """Return the scores and seconds of one run."""
    without = (label,) if entry.method == "retrained" else ()
    model, seconds = trained(name, data, data_name, without=without, device=device)
    head_only = False
    if entry.method not in ("original", "retrained"):
        model = copy.deepcopy(model)
        source = data.train
        if entry.loader == "forget":
            source = source.where(source.targets == label)
        loader = DataLoader(source, batch_size=128)
        request = forget(model).classes([label]).using(entry.method, **entry.hyperparameters)
        start = time.perf_counter()
        result = request.seed(seed).on(device).run(loader, guard=None)
        seconds = time.perf_counter() - start
        head_only = find(entry.method).card.edits == "head"
        Console(stderr=True).print(f"{name} {entry.title} seed {seed}: {result.stopped_because}")
    if head_only and device == "cpu":  # the features of 70 000 images are those of the original
        found = scores(Head(adapt(model, data.train.images[:2])), features.pair, label)
    else:
        found = scores(model, data, label, device)
    return {**found, "seconds": seconds}


def class_table(
    name: str,
    data: Pair,
    data_name: str,
    *,
    label: int = 3,
    seeds: Iterable[int] = (0, 1, 2),
    entries: Sequence[Entry] = ENTRIES,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return one record a row: mean and standard deviation over seeds.

    Every single run is written to the cache when it ends; a second call goes on where the first
    one stopped.
    """
    rows = []
    original, _ = trained(name, data, data_name, device=device)
    features = FeatureData(original, data)
    for entry in entries:
        runs = []
        for seed in seeds if entry.seeded else (0,):
            file = _run_file(entry, name, data_name, label, seed, device)
            if not file.exists():
                record = run_entry(entry, name, data, data_name, label, seed, device, features)
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(".partial")
                partial.write_text(json.dumps(record))
                partial.rename(file)
            runs.append(json.loads(file.read_text()))
        rows.append(
            {
                "title": entry.title,
                "runs": len(runs),
                **{column: mean(run[column] for run in runs) for column in COLUMNS},
                **{
                    f"{column} deviation": stdev(run[column] for run in runs)
                    if len(runs) > 1
                    else 0.0
                    for column in COLUMNS
                },
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown, mean and deviation where there are several runs."""
    lines = [
        "| method | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for row in rows:
        cells = [_cell(row, column) for column in COLUMNS]
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], column: str) -> str:
    digits = {"US": 4, "seconds": 1}.get(column, 2)
    text = f"{row[column]:.{digits}f}"
    deviation = row[f"{column} deviation"]
    return f"{text} ± {deviation:.{digits}f}" if row["runs"] > 1 else text


def _run_file(entry: Entry, name: str, data_name: str, label: int, seed: int, device: str) -> Path:
    options = "-".join(f"{key}={value}" for key, value in sorted(entry.hyperparameters.items()))
    stem = f"{entry.method}-{options or 'default'}-{entry.loader}-class{label}-s{seed}-{device}"
    epochs = RECIPES[name].epochs
    return cache_root() / "benchmark" / f"{data_name}-{name}-e{epochs}-runs" / f"{stem}.json"
