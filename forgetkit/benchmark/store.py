"""What the tables about samples share: cached models and runs, accuracies, Markdown."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, TypeAlias

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from forgetkit.benchmark.datasets import Pair, TensorImages
from forgetkit.benchmark.scoring import logits_on
from forgetkit.benchmark.train import TrainRecipe, cache_root, fit
from forgetkit.errors import ForgetkitError
from forgetkit.whole_files import written_whole

Record: TypeAlias = dict[str, float]
Row: TypeAlias = Mapping[str, Any]

FEW = 1000


@dataclass(frozen=True)
class Setting:
    """What all rows of one table share.

    Args:
        model_name: goes into the cache's file names.
        build: makes an untrained model from the number of classes.
        recipe: how to train it.
        data: what to train and test on, already cut to the size wanted.
        data_name: goes into the cache's file names, the size included.
        device: where to compute.
    """

    model_name: str
    build: Callable[[int], nn.Module]
    recipe: TrainRecipe
    data: Pair
    data_name: str
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Names model, data and recipe."""
        return f"{self.data_name}-{self.model_name}-{self.recipe.name}"

    @property
    def held_out(self) -> TensorImages:
        """The half of the test set on which methods may stop."""
        return self.data.test.where(torch.arange(len(self.data.test)) % 2 == 1)

    @property
    def few_held_out(self) -> TensorImages:
        """A thousand of them, for methods that look after every pass over a few samples."""
        return self.held_out.where(torch.arange(len(self.held_out)) < FEW)

    @property
    def measured(self) -> TensorImages:
        """The half of the test set that only the table sees."""
        return self.data.test.where(torch.arange(len(self.data.test)) % 2 == 0)

    def model(self, part: str, train_set: TensorImages) -> tuple[nn.Module, float]:
        """Return a model trained on exactly this set, and the seconds that training took.

        Args:
            part: names the set in the cache.
            train_set: what to train on.
        """
        file = cache_root() / "benchmark" / f"{self.key}-{part}.safetensors"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build(self.data.num_classes)
            if not file.exists():
                seconds = fit(model, train_set, self.recipe, device=self.device, label=file.stem)
                state = {name: t.cpu().contiguous() for name, t in model.state_dict().items()}
                with written_whole(file) as partial:
                    save_file(state, partial, metadata={"seconds": str(seconds)})
        with safe_open(file, "pt") as opened:
            seconds = float(opened.metadata()["seconds"])
        model.load_state_dict(load_file(file))
        return model.to(self.device).eval(), seconds

    def run(self, part: str, compute: Callable[[], Record]) -> Record:
        """Return the record of one run, from the cache when it was made before.

        A method that refuses or breaks gives a record without figures and a line that says why; it
        is tried again the next time.
        """
        file = cache_root() / "benchmark" / f"{self.key}-runs" / f"{part}-{self.device}.json"
        if not file.exists():
            start = time.perf_counter()
            try:
                record = compute()
            except ForgetkitError as error:
                Console(stderr=True, soft_wrap=True).print(f"{part}: {error}", markup=False)
                return {}
            Console(stderr=True).print(f"{part}: {time.perf_counter() - start:.1f} s")
            with written_whole(file) as partial:
                partial.write_text(json.dumps(record))
        found: Record = json.loads(file.read_text())
        return found

    def loader(self, data: TensorImages) -> DataLoader[tuple[Tensor, int]]:
        """Return a loader over a set in its order."""
        return DataLoader(data, batch_size=128)

    def accuracy(self, model: nn.Module, data: TensorImages, labels: Tensor | None = None) -> float:
        """Return the accuracy in percent, at other labels if some are given."""
        right = logits_on(model, data.images, self.device).argmax(dim=1)
        return 100.0 * float(
            (right == (data.targets if labels is None else labels)).double().mean()
        )


def drawn(size: int, of: int, seed: int) -> Tensor:
    """Return distinct random positions, (size,) in ascending order."""
    return torch.randperm(of, generator=Generator().manual_seed(seed))[:size].sort().values


def without(data: TensorImages, positions: Tensor) -> TensorImages:
    """Return the samples at all other positions."""
    keep = torch.ones(len(data), dtype=torch.bool)
    keep[positions] = False
    return data.where(keep)


def told(settings: Mapping[str, object], between: str = "-") -> str:
    """Return hyper-parameters in one string, nothing for the defaults."""
    return between.join(f"{name}={value}" for name, value in sorted(settings.items()))


def titled(slug: str, settings: Mapping[str, object]) -> str:
    """Return what a table calls a method with these hyper-parameters."""
    return ", ".join(filter(None, (slug, told(settings, ", "))))


def row(columns: Sequence[str], runs: Sequence[Record], **names: object) -> dict[str, Any]:
    """Return one row: names, and mean and deviation of each column over the runs that worked."""
    found: dict[str, Any] = {**names, "runs": len(runs)}
    for column in columns:
        values = [run[column] for run in runs if column in run]
        found[column] = mean(values) if values else math.nan
        found[f"{column} deviation"] = stdev(values) if len(values) > 1 else math.nan
    return found


def markdown(names: Sequence[str], columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table.

    Args:
        names: keys of what stands to the left: words or numbers as they are.
        columns: keys of figures; their deviation is printed where there is one.
        rows: what ``row`` made.
    """
    lines = [
        f"| {' | '.join((*names, *columns))} |",
        f"|{' --- |' * len(names)}{' ---: |' * len(columns)}",
    ]
    for found in rows:
        cells = [str(found[name]) for name in names] + [_cell(found, name) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Row, column: str) -> str:
    if math.isnan(found[column]):
        return "-"
    deviation = found[f"{column} deviation"]
    return f"{found[column]:.2f}" + ("" if math.isnan(deviation) else f" ± {deviation:.2f}")
