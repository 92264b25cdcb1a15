"""What the demo does, step by step, and the table it ends in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from forgetkit.api import forget
from forgetkit.benchmark.datasets import Pair, TensorImages, digits, fashion_mnist
from forgetkit.benchmark.train import fit
from forgetkit.demo.contenders import CONTENDERS, Contender, describe_input
from forgetkit.demo.pictures import write_pictures
from forgetkit.errors import BadTarget, DataError
from forgetkit.losses import unlearning_score
from forgetkit.progress import progress
from forgetkit.saving import save_model

if TYPE_CHECKING:
    from rich.table import Table

DataName: TypeAlias = Literal["digits", "fashion-mnist"]
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the demo's table; accuracies are fractions of the test set.

    Args:
        model: which of the two models.
        state: ``"before"``, ``"forgotten"``, ``"masked"`` or ``"retrained"``.
        forget_test: accuracy on test samples of the forgotten classes.
        retain_test: accuracy on all others.
        us: unlearning score from these two.
        seconds: what it cost: training, the run, nothing for the mask.
    """

    model: str
    state: str
    forget_test: float
    retain_test: float
    us: float
    seconds: float


@dataclass
class DemoReport:
    """The demo's table and the folders that it wrote.

    Args:
        data: name of the data set.
        method: what was used to forget.
        classes: names of the forgotten classes.
        rows: four for each model.
        saved: folders, in the order they were written.
        seconds: the whole demo.
    """

    data: str
    method: str
    classes: list[str]
    rows: list[Row] = field(default_factory=list)
    saved: list[Path] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return plain records."""
        return {
            "data": self.data,
            "method": self.method,
            "classes": self.classes,
            "rows": [asdict(row) for row in self.rows],
            "saved": [str(folder) for folder in self.saved],
            "seconds": self.seconds,
        }

    def __rich__(self) -> Table:
        """Return the table for a terminal."""
        from rich.table import Table

        table = Table(
            title=f"Forgetting {', '.join(self.classes)} of {self.data} with {self.method}",
            caption="accuracies on test images; wanted: 0 % on the forgotten class, and on the "
            "others no less than before",
        )
        table.add_column("model")
        table.add_column("state")
        for name in ("forgotten class", "other classes", "unlearning score", "seconds"):
            table.add_column(name, justify="right")
        for number, row in enumerate(self.rows):
            last = number + 1 == len(self.rows) or self.rows[number + 1].model != row.model
            first = number == 0 or self.rows[number - 1].model != row.model
            table.add_row(
                row.model if first else "",
                row.state,
                f"{100 * row.forget_test:.1f} %",
                f"{100 * row.retain_test:.1f} %",
                f"{row.us:.3f}",
                f"{row.seconds:.2f}",
                end_section=last,
            )
        return table


def load_pair(name: DataName, root: Path | None = None) -> Pair:
    """Load the demo's data set.

    Raises:
        DataError: Fashion-MNIST without a folder that holds it.
    """
    if name == "digits":
        return digits()
    if root is None:
        raise DataError(
            "--data fashion-mnist: expected --root DIR with its four files, found no --root; "
            "download the data set once with torchvision.datasets.FashionMNIST(DIR, download=True)"
        )
    return fashion_mnist(root)


def run_demo(
    name: DataName = "digits",
    *,
    root: Path | None = None,
    classes: tuple[int, ...] = (3,),
    method: str = "lau",
    out: Path,
    seed: int = 0,
    say: Say = print,
) -> DemoReport:
    """Train, forget, compare and save, for each of the demo's models.

    Args:
        name: the data set.
        root: where Fashion-MNIST lies.
        classes: what to forget.
        method: a registered method.
        out: folder for the models, original and edited, and for digits the images too.
        seed: of training and forgetting.
        say: gets one line about each step.

    Raises:
        ForgetkitError: missing data, unknown classes or method.
    """
    start = time.perf_counter()
    data = load_pair(name, root)
    if not classes or not all(0 <= label < data.num_classes for label in classes):
        raise BadTarget(
            f"--classes {', '.join(map(str, classes))}: expected labels from 0 to "
            f"{data.num_classes - 1}, found others; {name} has these classes: "
            f"{', '.join(data.train.classes)}"
        )
    report = DemoReport(name, method, [data.train.classes[label] for label in classes])
    with _threads(1 if name == "digits" else torch.get_num_threads()):
        for contender in CONTENDERS:
            _visit(contender, data, report, classes, out, seed, say)
    if name == "digits":
        report.saved.append(write_pictures(data, out / "images"))
    report.seconds = time.perf_counter() - start
    return report


def _visit(
    contender: Contender,
    data: Pair,
    report: DemoReport,
    classes: tuple[int, ...],
    out: Path,
    seed: int,
    say: Say,
) -> None:
    """Add one model's four rows and save it before and after."""
    recipe = contender.recipes[report.data]

    def row(state: str, logits: Tensor, seconds: float) -> None:
        lost, kept = _accuracies(logits, data.test.targets, classes)
        report.rows.append(
            Row(contender.title, state, lost, kept, unlearning_score(kept, lost), seconds)
        )

    def train(samples: TensorImages, what: str) -> tuple[nn.Module, float]:
        with _seeded(seed), progress(f"{contender.title}: {what}") as bar:
            bar.expect(recipe.epochs)
            model = contender.build(data)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            seconds = fit(model, samples, recipe, device=device, quiet=True, on_epoch=bar.advance)
        say(f"{contender.title}: {what}, {recipe.epochs} epochs in {seconds:.1f} s")
        return model, seconds

    model, seconds = train(data.train, "trained on all classes")
    logits = _logits(model, data.test.images)
    row("before", logits, seconds)
    masked = logits.clone()
    masked[:, list(classes)] = -torch.inf
    _save(model, out / contender.slug / "original", data, report)

    loader = DataLoader(data.train, batch_size=256)
    result = forget(model).classes(classes).using(report.method).seed(seed).run(loader)
    seconds = sum(result.seconds.values())
    say(f"{contender.title}: {result.stopped_because} ({seconds:.2f} s)")
    state = "rolled back" if result.rolled_back else "forgotten"
    row(f"{state} ({report.method})", _logits(model, data.test.images), seconds)
    if not result.rolled_back:
        result.save(out / contender.slug / "forgotten")
        _describe(model, out / contender.slug / "forgotten", data)
        report.saved.append(out / contender.slug / "forgotten")
        result.patch.save(out / contender.slug / "forget.patch.safetensors")

    row("masked in the head", masked, 0.0)
    kept = ~torch.isin(data.train.targets, torch.tensor(classes))
    retrained, seconds = train(data.train.where(kept), "trained again without the class")
    row("retrained without it", _logits(retrained, data.test.images), seconds)


def _save(model: nn.Module, folder: Path, data: Pair, report: DemoReport) -> None:
    save_model(model, folder)
    _describe(model, folder, data)
    report.saved.append(folder)


def _describe(model: nn.Module, folder: Path, data: Pair) -> None:
    if hasattr(model, "config"):
        describe_input(folder, data)


def _accuracies(logits: Tensor, labels: Tensor, classes: tuple[int, ...]) -> tuple[float, float]:
    """Return the accuracy on samples of ``classes`` and on all others."""
    right = (logits.argmax(dim=1) == labels).float()
    lost = torch.isin(labels, torch.tensor(classes))
    return float(right[lost].mean()), float(right[~lost].mean())


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return (samples, classes) on the CPU, in eval mode, which the model is in already."""
    device = next(model.parameters()).device
    parts = []
    for part in images.split(512):
        output = model(part.to(device))
        parts.append(getattr(output, "logits", output).cpu())
    return torch.cat(parts)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads; for digits they wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
