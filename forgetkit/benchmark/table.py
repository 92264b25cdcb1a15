"""The class-forgetting table: methods x seeds on one original model, resumable."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from forgetkit.adapting import adapt
from forgetkit.api import forget
from forgetkit.benchmark.datasets import Pair
from forgetkit.benchmark.scoring import CountedReads, FeatureData, Head, logits_on, scores
from forgetkit.benchmark.train import RECIPES, TrainRecipe, cache_root, trained
from forgetkit.errors import BadHyperparameter
from forgetkit.method import all_cards, find
from forgetkit.whole_files import written_whole

COLUMNS = (
    "D_r", "D_f", "D_tr", "D_tf", "US", "US_gap", "JS_tr", "JS_tf", "seconds", "reads_f", "reads_r",
)  # fmt: skip
DIGITS = {"US": 4, "US_gap": 4, "seconds": 1, "reads_f": 1, "reads_r": 1, "JS_tr": 4, "JS_tf": 4}


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Args:
        title: what the row is called.
        method: registered name, or ``"original"`` or ``"retrained"``.
        hyperparameters: for ``using``.
        loader: ``"forget"`` hands over D_f alone, ``"train"`` the whole training set.
        most: largest number of seeds: 1 where seeds make no difference, or a run takes too long.
    """

    title: str
    method: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    loader: str = "forget"
    most: int = 100


MASK = Entry("class masked in the head", "linear_filtration", {"form": "naive"}, most=1)
YARDSTICKS = (
    Entry("original", "original", most=1),
    Entry("retrained", "retrained", most=1),
    MASK,
)
ENTRIES = (
    *YARDSTICKS,
    Entry("finetune, 2 epochs", "finetune", {"epochs": 2}, "train"),
    Entry("neggrad", "neggrad"),
    Entry("random_label", "random_label"),
    Entry("linear_filtration", "linear_filtration", loader="train", most=1),
    Entry("lau", "lau"),
    Entry("lau, without double softmax", "lau", {"double_softmax": False}),
    Entry("lau, 10 % of D_f", "lau", {"share": 0.1}),
    Entry("lau, full PGD", "lau", {"attack": "full"}),
)


def every_class_method(without: Iterable[str] = ("retrain", "lau")) -> tuple[Entry, ...]:
    """Return one row for each registered method that forgets classes, at its defaults.

    ``retrain`` is left out because the retrained model has a row already, ``lau`` for the same
    reason.
    """
    left_out = set(without)
    return tuple(
        Entry(card.title, card.slug, loader="train" if "retain" in card.needs else "forget")
        for card in all_cards()
        if "classes" in card.goals and card.slug not in left_out
    )


def chosen_entries(
    *, every: bool = False, methods: Sequence[str] = (), without: Sequence[str] = ()
) -> tuple[Entry, ...]:
    """Return the rows that are asked for.

    Args:
        every: a row for every method behind those of ``ENTRIES``.
        methods: rows of these alone, and the yardsticks.
        without: methods to leave out.

    Raises:
        UnknownMethod: none of that name; names the nearest.
        BadHyperparameter: one has no row: it does not forget classes, or it is ``retrain``.
    """
    entries: tuple[Entry, ...] = ENTRIES
    if every or methods:
        shown = {entry.method for entry in ENTRIES}
        entries = (*ENTRIES, *every_class_method(without=("retrain", *shown)))
    if methods:
        wanted = {find(name).card.slug for name in methods}
        without_row = sorted(wanted - {entry.method for entry in entries})
        if without_row:
            raise BadHyperparameter(
                "table: expected methods that forget classes by something else than retraining, "
                f"found {', '.join(without_row)}; leave it out, or see what "
                "`forgetkit methods --for classes` lists"
            )
        entries = tuple(e for e in entries if e in YARDSTICKS or e.method in wanted)
    left_out = {find(name).card.slug for name in without}
    return tuple(entry for entry in entries if entry.method not in left_out)


def settable(entries: Sequence[Entry]) -> list[str]:
    """Return the methods whose rows ``with_settings`` can change: all but the yardsticks'."""
    return list(dict.fromkeys(entry.method for entry in entries if entry not in YARDSTICKS))


def with_settings(
    entries: Sequence[Entry], given: Mapping[str, Mapping[str, Any]]
) -> tuple[Entry, ...]:
    """Return the rows with hyper-parameters by method, which their titles say then."""

    def changed(entry: Entry) -> Entry:
        more = given.get(entry.method, {})
        if entry in YARDSTICKS or not more:
            return entry
        said = ", ".join(f"{name}={value}" for name, value in sorted(more.items()))
        settings = {**entry.hyperparameters, **more}
        return replace(entry, title=f"{entry.title}, {said}", hyperparameters=settings)

    return tuple(changed(entry) for entry in entries)


@dataclass(frozen=True)
class Bench:
    """What all rows of one table share.

    Args:
        name: key of ``zoo.BUILDERS``.
        data: what the models were trained and are tested on.
        data_name: goes into the cache's file names.
        label: the class to forget.
        device: where to compute.
        recipe: how both models are trained.
    """

    name: str
    data: Pair
    data_name: str
    label: int
    device: str
    recipe: TrainRecipe

    @cached_property
    def features(self) -> FeatureData:
        """The data as the head of the original model sees them."""
        return FeatureData(self.model()[0], self.data)

    @cached_property
    def reference(self) -> Tensor:
        """Logits of the retrained model on the test set."""
        return logits_on(self.model(retrained=True)[0], self.data.test.images, self.device)

    def model(self, *, retrained: bool = False) -> tuple[nn.Module, float]:
        """Return the original or the retrained model and its training time in seconds."""
        without = (self.label,) if retrained else ()
        return trained(
            self.name, self.data, self.data_name, without=without, recipe=self.recipe,
            device=self.device,
        )  # fmt: skip


def run_entry(entry: Entry, bench: Bench, seed: int) -> dict[str, float]:
    """Return the scores, seconds and passes of one run."""
    model, seconds = bench.model(retrained=entry.method == "retrained")
    data, device, head_only = bench.data, bench.device, False
    passes = {"reads_f": 0.0, "reads_r": 0.0}
    if entry.method not in ("original", "retrained"):
        model = copy.deepcopy(model)
        counted = CountedReads(data.train, bench.label)
        source: Dataset[tuple[Tensor, int]] = counted
        if entry.loader == "forget":
            source = counted = CountedReads(
                data.train.where(data.train.targets == bench.label), bench.label
            )
        loader = DataLoader(source, batch_size=128)
        request = forget(model).classes([bench.label]).using(entry.method, **entry.hyperparameters)
        start = time.perf_counter()
        result = request.seed(seed).on(device).run(loader, guard=None)
        seconds = time.perf_counter() - start
        passes = counted.passes()
        head_only = find(entry.method).card.edits == "head"
        Console(stderr=True).print(
            f"{bench.name} {entry.title} seed {seed}: {result.stopped_because} ({seconds:.0f} s)"
        )
    if head_only and device == "cpu":  # the features of 70 000 images are those of the original
        head = Head(adapt(model, data.train.images[:2]))
        found = scores(head, bench.features.pair, bench.label, reference=bench.reference)
    else:
        found = scores(model, data, bench.label, device, reference=bench.reference)
    return {**found, **passes, "seconds": seconds}


def class_table(
    name: str,
    data: Pair,
    data_name: str,
    *,
    label: int = 3,
    seeds: Iterable[int] = (0, 1, 2),
    entries: Sequence[Entry] = ENTRIES,
    device: str = "cpu",
    minutes: float | None = None,
    recipe: TrainRecipe | None = None,
) -> list[dict[str, Any]]:
    """Return one record a row: mean and standard deviation over seeds.

    Every single run is written to the cache when it ends; a second call goes on where the first
    one stopped. All rows get their first seed before any gets its second. After ``minutes`` no
    further run is begun, and a row without any is left out. Models are trained by ``recipe``, or
    by the one of their name in ``RECIPES``.
    """
    bench = Bench(name, data, data_name, label, device, recipe or RECIPES[name])
    begun = time.perf_counter()
    runs: dict[str, list[dict[str, float]]] = {entry.title: [] for entry in entries}
    for number, seed in enumerate(seeds):
        for entry in entries:
            if number >= entry.most:
                continue
            file = _run_file(entry, bench, seed)
            spent = (time.perf_counter() - begun) / 60
            if not file.exists() and minutes is not None and spent > minutes:
                continue
            if not file.exists():
                record = run_entry(entry, bench, seed)
                with written_whole(file) as partial:
                    partial.write_text(json.dumps(record))
            runs[entry.title].append(json.loads(file.read_text()))
    return [row_of(title, found) for title, found in runs.items() if found]


def row_of(title: str, runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return mean and standard deviation of each column over the seeds of one row."""
    row: dict[str, Any] = {"title": title, "runs": len(runs)}
    for column in COLUMNS:
        values = [run.get(column, torch.nan) for run in runs]
        row[column] = mean(values)
        known = len(values) > 1 and all(map(math.isfinite, values))
        row[f"{column} deviation"] = stdev(values) if known else 0.0
    for end in ("US_gap_low", "US_gap_high"):
        row[end] = mean(run.get(end, torch.nan) for run in runs)
    return row


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
    if math.isnan(row[column]):
        return "-"
    digits = DIGITS.get(column, 2)
    text = f"{row[column]:.{digits}f}"
    if column == "US_gap":
        return f"{text} [{row['US_gap_low']:.{digits}f}, {row['US_gap_high']:.{digits}f}]"
    deviation = f"{row[f'{column} deviation']:.{digits}f}"
    return f"{text} ± {deviation}" if row["runs"] > 1 else text


def _run_file(entry: Entry, bench: Bench, seed: int) -> Path:
    options = "-".join(f"{key}={value}" for key, value in sorted(entry.hyperparameters.items()))
    stem = (
        f"{entry.method}-{options or 'default'}-{entry.loader}-class{bench.label}-s{seed}"
        f"-{bench.device}"
    )
    folder = f"{bench.data_name}-{bench.name}-e{bench.recipe.epochs}-runs"
    return cache_root() / "benchmark" / folder / f"{stem}.json"
