"""Undoing flipped labels: pairs of classes exchange the labels of a share of their samples."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from forgetkit.api import forget
from forgetkit.benchmark.datasets import TensorImages
from forgetkit.benchmark.store import Record, Setting, markdown, row, told, without
from forgetkit.method import build
from forgetkit.statistics import Statistics

NAMES = ("flipped", "samples", "method")
COLUMNS = ("D_test", "D_f true", "seconds")
SHARES = (0.05, 0.10, 0.20)


@dataclass(frozen=True)
class Cure:
    """One row of the table.

    Args:
        title: what the row is called.
        method: slug.
        hyperparameters: for ``using``.
        moved: whether every image is seen in five positions. The paper augments here, too.
    """

    title: str
    method: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    moved: bool = False

    @property
    def key(self) -> str:
        """Names method, settings and data in the cache."""
        settings = told(self.hyperparameters) or "default"
        return f"{self.method}-{settings}" + ("-moved" if self.moved else "")

    def shown(self, data: TensorImages) -> TensorImages:
        """Return the images that the method is given."""
        return in_five_positions(data) if self.moved else data


CURES = (
    Cure("pgu", "pgu", moved=True),
    Cure("pgu, images as they are", "pgu"),
    Cure("pgu, published settings", "pgu", {"preset": "depoison"}),
    Cure("influence1", "influence1"),
    Cure("influence2", "influence2"),
    Cure("scrub", "scrub"),
)


@dataclass(frozen=True)
class Poisoned:
    """A training set with flipped labels.

    Args:
        train: all samples, some with wrong labels.
        positions: where the wrong ones are.
        clean: the other samples.
        true_labels: of the wrong ones.
    """

    train: TensorImages
    positions: Tensor
    clean: TensorImages
    true_labels: Tensor


def poisoned(data: TensorImages, share: float, seed: int) -> Poisoned:
    """Exchange labels within random pairs of classes, equally many samples of each class.

    Args:
        data: the clean training set.
        share: part of all samples that get a wrong label.
        seed: of pairs and samples.
    """
    generator = Generator().manual_seed(seed)
    classes = torch.randperm(len(data.classes), generator=generator)
    pairs = classes[: len(classes) // 2 * 2].reshape(-1, 2)
    each = round(share * len(data) / pairs.numel())
    targets = data.targets.clone()
    chosen = []
    for pair in pairs:
        for label, other in (pair.tolist(), pair.flip(0).tolist()):
            own = (data.targets == label).nonzero()[:, 0]
            rows = own[torch.randperm(len(own), generator=generator)[:each]]
            targets[rows] = other
            chosen.append(rows)
    positions = torch.cat(chosen).sort().values
    wrong = TensorImages(data.images, targets, tuple(data.classes))
    return Poisoned(wrong, positions, without(data, positions), data.targets[positions])


def in_five_positions(data: TensorImages) -> TensorImages:
    """Return every image five times: as it is, and a pixel further up, down, left and right."""
    height, width = data.images.shape[-2:]
    padded = functional.pad(data.images, (1,) * 4, mode="replicate")
    steps = ((1, 1), (2, 1), (0, 1), (1, 2), (1, 0))
    moved = [padded[..., down : down + height, right : right + width] for down, right in steps]
    return TensorImages(torch.cat(moved), data.targets.repeat(len(steps)), tuple(data.classes))


def depoison_table(
    setting: Setting,
    *,
    shares: Iterable[float] = SHARES,
    cures: Sequence[Cure] = CURES,
    seeds: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Return one row for each share and cure, mean and deviation over seeds.

    Methods may stop by one half of the test set; ``D_test`` is measured on the other.
    ``D_f true`` is the accuracy on the poisoned images at their true labels. PGU gets statistics of
    the whole poisoned training set, all rows of it, collected beforehand, and no retained sample;
    methods that need D_r get the clean rest, each image once.

    Args:
        setting: model and clean data.
        shares: parts of the training set whose labels are flipped.
        cures: the rows beside the poisoned and the retrained model.
        seeds: of the poison and of the runs.
    """
    rows = []
    for share in shares:
        references = (Cure("poisoned", "poisoned"), Cure("retrained", "retrained"))
        for cure in (*references, *cures):
            runs = [
                setting.run(
                    f"depoison{share:g}-validated-{cure.key}-s{seed}",
                    partial(_run, setting, cure, share, seed),
                )
                for seed in seeds
            ]
            count = len(poisoned(setting.data.train, share, seeds[0]).positions)
            flipped = f"{100 * share:g} %"
            rows.append(row(COLUMNS, runs, flipped=flipped, samples=count, method=cure.title))
    return rows


def depoison_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    return markdown(NAMES, COLUMNS, rows)


def _run(setting: Setting, cure: Cure, share: float, seed: int) -> Record:
    poison = poisoned(setting.data.train, share, seed)
    if cure.method == "retrained":
        model, seconds = setting.model(f"unpoisoned{share:g}-s{seed}", poison.clean)
    else:
        model, seconds = setting.model(f"poisoned{share:g}-s{seed}", poison.train)
    if cure.method not in ("poisoned", "retrained"):
        model = copy.deepcopy(model)
        seconds = _cure(setting, model, cure, poison, seed)
    wrong = poison.train.where(poison.positions)
    return {
        "D_test": setting.accuracy(model, setting.measured),
        "D_f true": setting.accuracy(model, wrong, poison.true_labels),
        "seconds": seconds,
    }


def _cure(setting: Setting, model: nn.Module, cure: Cure, poison: Poisoned, seed: int) -> float:
    """Undo the poison in place and return the seconds it took, statistics left out."""
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(cure.hyperparameters)
        if cure.method == "pgu":
            file = Path(folder) / "statistics.safetensors"
            shown = setting.loader(cure.shown(poison.train))
            Statistics.collect(model, shown, positions="all").save(file)
            settings["statistics"] = str(file)
        method = build(cure.method, settings)
        request = forget(model).using(method).seed(seed).on(setting.device)
        request = request.validate(setting.loader(setting.few_held_out))
        if "retain" in method.needs:
            request = request.depoison(poison.positions.tolist())
            loader = setting.loader(poison.train)
        else:
            request = request.depoison()
            loader = setting.loader(cure.shown(poison.train.where(poison.positions)))
        start = time.perf_counter()
        request.run(loader, guard=None)
        return time.perf_counter() - start
