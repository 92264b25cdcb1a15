"""How the result of a method depends on its settings, over several classes of one model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn

from forgetkit.adapting import adapt
from forgetkit.api import forget
from forgetkit.benchmark.datasets import Pair
from forgetkit.benchmark.scoring import FeatureData, Head, scores
from forgetkit.benchmark.store import Record, Setting, drawn, markdown, row
from forgetkit.errors import BadHyperparameter
from forgetkit.method import build, find
from forgetkit.statistics import Statistics

COLUMNS = ("D_tr - mask", "worst", "D_tf", "largest", "seconds")
PART = "s0"
"""Cache name of the model that the class tables use, too."""

STUDIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "lau": {
        "default": {},
        "one attack step instead of ten": {"attack_steps": 1},
        "attack step 0.06": {"attack_step": 0.06},
        "attack step 2.0": {"attack_step": 2.0},
        "lr 0.001": {"lr": 0.001},
        "lr 0.01": {"lr": 0.01},
        "lr 0.0003": {"lr": 0.0003},
        "without momentum": {"momentum": 0.0},
        "alpha 0.3": {"alpha": 0.3},
        "alpha 0.7": {"alpha": 0.7},
        "batch of 32": {"batch_size": 32},
        "without double softmax": {"double_softmax": False},
    },
    "pgu": {
        "default: energy, 0.90": {},
        "energy, 0.95": {"gamma": 0.95},
        "energy, 0.80": {"gamma": 0.80},
        "roots, 0.90 (paper)": {"spectrum": "sigma", "gamma": 0.90},
    },
    "suli": {
        "default: original teacher": {},
        "current teacher": {"teacher": "current"},
        "original teacher, 2 layers": {"layers": 2},
        "current teacher, 2 layers": {"teacher": "current", "layers": 2},
    },
}
"""Variants of each method: title and what it passes to ``using``."""


@dataclass(frozen=True)
class Study:
    """What all rows of one table share.

    Args:
        setting: model and data; the model is trained on all of them.
        images: how many random training images are at hand.
        seed: of the draw and of the runs.
    """

    setting: Setting
    images: int
    seed: int = 0

    @cached_property
    def data(self) -> Pair:
        """The images at hand, and the whole test set."""
        train = self.setting.data.train
        return replace(
            self.setting.data, train=train.where(drawn(len(train), self.images, self.seed))
        )

    @cached_property
    def features(self) -> Pair:
        """Both as the head of the original model sees them."""
        return FeatureData(self.model(), self.data).pair

    def model(self) -> nn.Module:
        """Return the original model."""
        return self.setting.model(PART, self.setting.data.train)[0]

    def once(self, method: str, variant: Mapping[str, Any], label: int) -> Record:
        """Return figures and seconds of one run, from the cache when it was made before."""
        told = "-".join(f"{name}={value}" for name, value in sorted(variant.items())) or "default"
        part = f"settings{self.images}-{method}-{told}-class{label}-s{self.seed}"
        return self.setting.run(part, partial(self._run, method, variant, label))

    def _run(self, method: str, variant: Mapping[str, Any], label: int) -> Record:
        model, images = self.model(), self.data.train
        with tempfile.TemporaryDirectory() as folder:
            settings = dict(variant)
            if method == "pgu":
                file = Path(folder) / "statistics.safetensors"
                Statistics.collect(model, self.setting.loader(images)).save(file)
                settings["statistics"] = str(file)
            request = forget(model).classes([label]).using(build(method, settings))
            loader = self.setting.loader(images.where(images.targets == label))
            start = time.perf_counter()
            request.seed(self.seed).on(self.setting.device).run(loader, guard=None)
            seconds = time.perf_counter() - start
        if find(method).card.edits == "head":
            head = Head(adapt(model, images.images[:2]))
            found = scores(head, self.features, label, self.setting.device)
        else:
            found = scores(model, self.data, label, self.setting.device)
        return {"D_tr": found["D_tr"], "D_tf": found["D_tf"], "seconds": seconds}


def settings_table(study: Study, method: str, classes: Iterable[int]) -> list[dict[str, Any]]:
    """Return one row for each variant, over classes that are forgotten in turn, guard off.

    D_tr is given in points against the model whose class is masked in the head: mean and worst
    class; D_tf is the mean and the largest. PGU's statistics are those of the images at hand.

    Args:
        study: model and data.
        method: a key of ``STUDIES``.
        classes: to forget, one a run.

    Raises:
        BadHyperparameter: there is no study of this method.
    """
    if method not in STUDIES:
        raise BadHyperparameter(
            f"settings: expected a method with a study ({', '.join(STUDIES)}), found {method!r}; "
            "pass one of these"
        )
    labels = tuple(classes)
    mask = [study.once("linear_filtration", {"form": "naive"}, label)["D_tr"] for label in labels]
    rows = []
    for title, variant in STUDIES[method].items():
        runs = [study.once(method, variant, label) for label in labels]
        away = [run["D_tr"] - free for run, free in zip(runs, mask, strict=True)]
        left = [run["D_tf"] for run in runs]
        found = {
            "D_tr - mask": mean(away),
            "worst": min(away),
            "D_tf": mean(left),
            "largest": max(left),
            "seconds": mean(run["seconds"] for run in runs),
        }
        rows.append(row(COLUMNS, [found], setting=title))
    return rows


def settings_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    return markdown(("setting",), COLUMNS, rows)
