"""Speed as ratios of two things that are measured in turn, in one run."""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit.api import forget
from forgetkit.benchmark.zoo import build_resnet18


@dataclass(frozen=True)
class Ratio:
    """One line of the report.

    Args:
        title: what is compared.
        ours: median seconds of the first.
        theirs: median seconds of the second.
        wanted: what the ratio should be, in words.
    """

    title: str
    ours: float
    theirs: float
    wanted: str

    @property
    def value(self) -> float:
        """The ratio of the medians."""
        return self.ours / self.theirs


def in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Return median seconds of both, measured alternately after one unmeasured call of each."""
    spent: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for kind, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            call()
            if repeat > 0:
                spent[kind].append(time.perf_counter() - start)
    return statistics.median(spent[0]), statistics.median(spent[1])


def _loader(
    count: int, size: int, channels: int, batch_size: int, classes: int, only: int | None
) -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, size, size, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    if only is not None:
        labels[:] = only
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def _taught(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, ...]]) -> nn.Module:
    """Raise the forgotten class's bias until all of D_f is predicted as that class.

    A run on untrained weights would stop at once; this makes the head work for its stop rule.
    """
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        model.eval()
        images = next(iter(loader))[0]
        features: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        model(images)
        hook.remove()
        direction = features[0].mean(dim=0)
        head.weight[3] = 10 * direction / direction.norm() ** 2 + head.weight[3]
    return model


def lau_over_inference(
    title: str,
    model: nn.Module,
    images: int,
    size: int,
    channels: int,
    classes: int,
    wanted: str,
    repeats: int = 3,
) -> Ratio:
    """Compare LAU's whole run with one bare inference pass over the same forget set."""
    loader = _loader(images, size, channels, 32, classes, only=3)
    model = _taught(model, loader)
    start = copy.deepcopy(model.state_dict())

    def ours() -> None:
        model.load_state_dict(start)
        forget(model).classes([3]).using("lau").on("cpu").run(loader)

    def theirs() -> None:
        model.eval()
        with torch.inference_mode():
            for batch, _ in loader:
                model(batch)

    return Ratio(title, *in_turn(ours, theirs, repeats), wanted)


def finetune_over_bare_loop(repeats: int = 3) -> Ratio:
    """Compare an epoch of ``finetune`` with a bare PyTorch loop of the same mathematics."""
    loader = _loader(2048, 32, 1, 64, 10, only=None)
    model = build_resnet18(10)
    start = copy.deepcopy(model.state_dict())
    labels = loader.dataset.tensors[1]  # type: ignore[attr-defined]
    kept = torch.nonzero(labels != 3)[:, 0]

    def ours() -> None:
        model.load_state_dict(start)
        request = forget(model).classes([3]).using("finetune", epochs=1, batch_size=64)
        result = request.on("cpu").run(loader, guard=None)
        seconds.append(result.history[0]["seconds"])

    def theirs() -> None:
        model.load_state_dict(start)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
        data = torch.utils.data.Subset(loader.dataset, kept.tolist())
        for images, targets in DataLoader(data, batch_size=64, shuffle=True):
            loss = functional.cross_entropy(model(images), targets)
            if not torch.isfinite(loss):
                raise RuntimeError("the bare loop diverged")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    seconds: list[float] = []
    _, bare = in_turn(ours, theirs, repeats)
    return Ratio(
        "finetune, one epoch, over a bare loop (without measuring D_f)",
        statistics.median(row for row in seconds[1:]),
        bare,
        "at most 1.05",
    )


def import_over_torch(repeats: int = 5) -> Ratio:
    """Compare ``import forgetkit`` with ``import torch``, each in a new process."""

    def importing(module: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)  # noqa: S603  our own interpreter

    # forgetkit imports lazily: time what the first line of a user's script pulls in.
    line = "torch; from forgetkit import forget"
    ours, theirs = in_turn(importing(line), importing("torch"), repeats)
    return Ratio("from forgetkit import forget, over import torch", ours, theirs, "at most 1.1")


def full_over_partial_pgd(repeats: int = 3) -> Ratio:
    """Compare LAU with the attack on images with LAU with the attack on features."""
    loader = _loader(256, 32, 1, 128, 10, only=3)
    model = _taught(build_resnet18(10), loader)
    start = copy.deepcopy(model.state_dict())

    def with_attack(attack: str) -> Callable[[], object]:
        def call() -> None:
            model.load_state_dict(start)
            request = forget(model).classes([3]).using("lau", attack=attack, attack_steps=10)
            request.on("cpu").run(loader)

        return call

    seconds = in_turn(with_attack("full"), with_attack("partial"), repeats)
    return Ratio("LAU with full PGD over Partial-PGD", *seconds, "the paper has 4 to 9")


def all_ratios(*, quick: bool = False, repeats: int = 3) -> Iterator[Ratio]:
    """Measure everything, one after the other; ``quick`` takes fewer images, for a smoke test."""
    from torchvision.models import resnet50

    repeats = 1 if quick else repeats
    yield import_over_torch(repeats)
    yield lau_over_inference(
        "LAU, whole run, over one inference pass on D_f: resnet18 at 32 px",
        build_resnet18(10),
        512 if quick else 6000,
        32,
        1,
        10,
        "reported",
        repeats,
    )
    yield finetune_over_bare_loop(1 if quick else 3 * repeats)
    yield full_over_partial_pgd(1)  # minutes a call
    yield lau_over_inference(
        "LAU, whole run, over one inference pass on D_f: ResNet-50 at 224 px",
        resnet50(num_classes=1000),
        32 if quick else 128,
        64 if quick else 224,
        3,
        1000,
        "at most 1.25",
        repeats,
    )
