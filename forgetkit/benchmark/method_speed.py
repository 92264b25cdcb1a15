"""Speed of single methods as ratios: SULI over its bare loop, PGU's statistics over a forward."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit.api import forget
from forgetkit.benchmark.attack_speed import attack_speed_on_small_models
from forgetkit.benchmark.speed import Ratio, in_turn
from forgetkit.benchmark.zoo import build_resnet18
from forgetkit.losses import bounded_ascent
from forgetkit.statistics import Statistics

LAYERS, SWEEPS, BATCH = 4, 2, 128


def _images(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 32, 32, generator=generator)
    return TensorDataset(images, torch.full((count,), 3))


def suli_over_bare_loop(images: int = 512, repeats: int = 3) -> Ratio:
    """Compare SULI's setup and steps with a bare PyTorch loop of the same mathematics."""
    data = _images(images)
    loader = DataLoader(data, batch_size=BATCH)
    model = build_resnet18(10)
    with torch.no_grad():
        model.fc.bias[3] = 50.0  # type: ignore[union-attr,operator]  # far from the target
    start = copy.deepcopy(model.state_dict())
    seconds: list[float] = []

    def ours() -> None:
        model.load_state_dict(start)
        request = (
            forget(model)
            .classes([3])
            .using("suli", layers=LAYERS, epochs=SWEEPS, rollback=False, lr=1e-7, batch_size=BATCH)
        )
        result = request.on("cpu").run(loader, guard=None)
        seconds.append(sum(result.seconds.get(phase, 0.0) for phase in ("setup", "train", "check")))

    def theirs() -> None:
        model.load_state_dict(start)
        model.eval()
        inputs, labels = data.tensors
        with torch.no_grad():
            logits = torch.cat([model(x) for x in inputs.split(BATCH)])
        targets = logits.index_fill(1, torch.tensor([3]), -torch.inf).softmax(dim=1)
        order = _entropy(logits).argsort(descending=True)
        for _ in range(SWEEPS):
            for rows in order.chunk(LAYERS):
                optimizer = torch.optim.Adam(model.parameters(), 1e-7)
                for some in rows.split(BATCH):
                    scores = model(inputs[some]).log_softmax(dim=1)
                    loss = functional.kl_div(scores, targets[some], reduction="batchmean")
                    (loss * len(some) / len(rows)).backward()
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    hits = [model(x).argmax(dim=1) for x in inputs.split(BATCH)]
                if bool((torch.cat(hits) != labels).all()):
                    raise RuntimeError("the bare loop reached its target")

    _, bare = in_turn(ours, theirs, repeats)
    return Ratio("SULI over its bare loop", statistics.median(seconds[1:]), bare, "at most 1.1")


def _entropy(logits: Tensor) -> Tensor:
    scores = logits.log_softmax(dim=1)
    return -(scores.exp() * scores).sum(dim=1)


def neggrad_over_bare_loop(images: int = 2048, repeats: int = 3) -> Ratio:
    """Compare an epoch of NegGrad on D_f alone with a bare loop of the same mathematics."""
    data = _images(images)
    loader = DataLoader(data, batch_size=64)
    model = build_resnet18(10)
    start = copy.deepcopy(model.state_dict())
    seconds: list[float] = []

    def ours() -> None:
        model.load_state_dict(start)
        request = forget(model).classes([3]).using("neggrad", epochs=1, lr=1e-6, batch_size=64)
        result = request.on("cpu").run(loader, guard=None)
        seconds.append(result.history[0]["seconds"])

    def theirs() -> None:
        model.load_state_dict(start)
        model.eval()
        optimizer = torch.optim.SGD(model.parameters(), 1e-6, 0.9, weight_decay=1e-5)
        for batch, labels in DataLoader(data, batch_size=64, shuffle=True):
            loss = bounded_ascent(model(batch), labels)
            if not torch.isfinite(loss):
                raise RuntimeError("the bare loop diverged")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()

    _, bare = in_turn(ours, theirs, repeats)
    title = "neggrad, one epoch, over a bare loop (without measuring D_f)"
    return Ratio(title, statistics.median(seconds[1:]), bare, "at most 1.05")


def statistics_over_forward(images: int = 30000, repeats: int = 1) -> Ratio:
    """Compare the collection of PGU's moments with a forward pass over the same images."""
    loader = DataLoader(_images(images), batch_size=BATCH)
    model = build_resnet18(10).eval()

    def theirs() -> None:
        with torch.inference_mode():
            for batch, _ in loader:
                model(batch)

    both = in_turn(lambda: Statistics.collect(model, loader), theirs, repeats)
    title = f"PGU statistics over a forward pass: resnet18 at 32 px, {images} images"
    return Ratio(title, *both, "at most 1.5")


def method_ratios(*, quick: bool = False, repeats: int = 3) -> Iterator[Ratio]:
    """Measure everything of this file, one after the other."""
    repeats = 1 if quick else repeats
    # two loops that differ by less than the noise of one round want more of them
    yield neggrad_over_bare_loop(256 if quick else 2048, 1 if quick else 3 * repeats)
    yield suli_over_bare_loop(256 if quick else 512, repeats)
    for name, found in attack_speed_on_small_models(repeats).items():
        title = f"ADV images all at once over one at a time: {name}"
        yield Ratio(title, found.together, found.one_by_one, "at most 0.33")
    yield statistics_over_forward(512 if quick else 30000, 1)
