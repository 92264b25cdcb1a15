"""Training of the benchmark's original and retrained models, with a cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.benchmark.datasets import Pair, TensorImages
from forgetkit.benchmark.zoo import BUILDERS
from forgetkit.whole_files import written_whole


@dataclass(frozen=True)
class TrainRecipe:
    """How a benchmark model is trained from scratch: one-cycle schedule, shifts and flips.

    Args:
        epochs: passes over the training set.
        lr: peak learning rate.
        optimizer: ``"sgd"`` (momentum 0.9, Nesterov) or ``"adamw"``.
        weight_decay: decoupled for AdamW, L2 for SGD.
        batch_size: samples a step.
        shift: random translation in pixels, both axes.
        flip: whether images are mirrored at random.
    """

    epochs: int
    lr: float
    optimizer: str
    weight_decay: float
    batch_size: int = 128
    shift: int = 2
    flip: bool = True

    def plain(self) -> TrainRecipe:
        """Return the recipe without augmentation, by which samples are learnt by heart."""
        return replace(self, shift=0, flip=False)

    @property
    def name(self) -> str:
        """What goes into the names of files."""
        return f"e{self.epochs}" + ("" if self.shift or self.flip else "-plain")


RECIPES = {
    "resnet18": TrainRecipe(epochs=10, lr=0.1, optimizer="sgd", weight_decay=5e-4, shift=1),
    "vit": TrainRecipe(epochs=24, lr=2e-3, optimizer="adamw", weight_decay=0.05, shift=1),
    "vgg": TrainRecipe(epochs=10, lr=0.05, optimizer="sgd", weight_decay=5e-4, shift=1),
    "allcnn": TrainRecipe(epochs=10, lr=0.05, optimizer="sgd", weight_decay=5e-4, shift=1),
}


def cache_root() -> Path:
    """Return the folder for trained models: ``$FORGETKIT_CACHE`` or ``~/.cache/forgetkit``."""
    return Path(os.environ.get("FORGETKIT_CACHE", Path.home() / ".cache" / "forgetkit"))


def finding_file(table: str, name: str) -> Path:
    """Return the cache's file for one finding of a table; its folder is there."""
    folder = cache_root() / "benchmark" / table
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"


def trained(
    name: str,
    data: Pair,
    data_name: str,
    *,
    seed: int = 0,
    without: tuple[int, ...] = (),
    recipe: TrainRecipe | None = None,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, float]:
    """Return a trained model and the seconds its training took, from the cache when it is there.

    Args:
        name: a key of ``zoo.BUILDERS``.
        data: the data set; only ``data.train`` is trained on.
        data_name: goes into the cache's file name.
        seed: of weights, shuffling and augmentation.
        without: classes left out of training: the retrained reference.
        recipe: how to train; default ``RECIPES[name]``.
        device: where to train.
    """
    recipe = recipe or RECIPES[name]
    left_out = "".join(f"-without{label}" for label in without)
    file = cache_root() / "benchmark" / f"{data_name}-{name}-e{recipe.epochs}-s{seed}{left_out}"
    file = file.with_suffix(".safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BUILDERS[name](data.num_classes)
        if not file.exists():
            train_set = data.train
            if without:
                kept = ~torch.isin(train_set.targets, torch.tensor(without))
                train_set = train_set.where(kept)
            seconds = fit(model, train_set, recipe, device=device, label=file.stem)
            state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
            with written_whole(file) as partial:
                save_file(state, partial, metadata={"seconds": str(seconds)})
    seconds = _recorded_seconds(file)
    model.load_state_dict(load_file(file))
    return model.to(device).eval(), seconds


def fit(
    model: nn.Module,
    data: TensorImages,
    recipe: TrainRecipe,
    *,
    device: torch.device | str = "cpu",
    label: str = "",
    quiet: bool = False,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Train ``model`` in place on ``data`` and return the seconds it took.

    Args:
        model: returns logits or an object that has them.
        data: what to train on.
        recipe: how.
        device: where; the model stays there.
        label: stands before each line about an epoch.
        quiet: whether to print no such line.
        on_epoch: called after each epoch, for a progress bar.
    """
    start = time.perf_counter()
    console = Console(stderr=True, quiet=quiet)
    memory = torch.channels_last
    model.to(device).to(memory_format=memory).train()
    steps = recipe.epochs * -(-len(data) // recipe.batch_size)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), recipe.lr, 0.9, weight_decay=recipe.weight_decay, nesterov=True
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), recipe.lr, weight_decay=recipe.weight_decay
        )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    for epoch in range(recipe.epochs):
        losses: list[Tensor] = []
        for images, targets in _augmented_batches(data, recipe):
            images = images.to(device, memory_format=memory)
            logits = model(images)
            logits = getattr(logits, "logits", logits)
            loss = functional.cross_entropy(logits, targets.to(device), label_smoothing=0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        console.print(
            f"{label} epoch {epoch + 1}/{recipe.epochs} loss {mean:.4f} "
            f"{time.perf_counter() - start:.0f} s"
        )
        if on_epoch is not None:
            on_epoch()
    model.to(memory_format=torch.contiguous_format)
    model.eval()
    return time.perf_counter() - start


def _augmented_batches(data: TensorImages, recipe: TrainRecipe) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data))
    for rows in order.split(recipe.batch_size):
        if len(rows) == 1:  # BatchNorm cannot train on one sample
            continue
        images = data.images[rows]
        if recipe.flip:
            mirrored = torch.rand(len(rows)) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if recipe.shift:
            images = _shifted(images, recipe.shift)
        yield images, data.targets[rows]


def _shifted(images: Tensor, most: int) -> Tensor:
    """Translate each image by up to ``most`` pixels on both axes, padding with its border."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1))
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    sample = torch.arange(count)[:, None, None, None]
    return padded[sample, torch.arange(images.shape[1])[:, None, None], rows, columns]


def _recorded_seconds(file: Path) -> float:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return float(opened.metadata()["seconds"])
