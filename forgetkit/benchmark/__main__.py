"""``python -m forgetkit.benchmark``: the built-in table and the speed report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from forgetkit.benchmark.datasets import digits, fashion_mnist
from forgetkit.benchmark.zoo import MODEL_NAMES

app = typer.Typer(help="The tables of the docs, made again.", no_args_is_help=True)


@app.command()
def table(
    data: Annotated[str, typer.Option(help="fashion-mnist or digits")] = "fashion-mnist",
    root: Annotated[Path | None, typer.Option(help="folder of Fashion-MNIST")] = None,
    model: Annotated[list[str] | None, typer.Option(help="resnet18, vit; default both")] = None,
    seeds: Annotated[int, typer.Option(help="number of seeds")] = 3,
    label: Annotated[int, typer.Option(help="class to forget")] = 3,
    device: Annotated[str, typer.Option(help="where to compute")] = "cpu",
) -> None:
    """Train what is not in the cache, unlearn, and print one Markdown table a model."""
    from forgetkit.benchmark.table import class_table, markdown

    pair = digits() if data == "digits" else fashion_mnist(root or Path())
    console = Console(soft_wrap=True)
    for name in model or MODEL_NAMES:
        rows = class_table(name, pair, data, label=label, seeds=range(seeds), device=device)
        console.print(f"\n{name}, {data}, class {label} ({pair.train.classes[label]})\n")
        console.print(markdown(rows), markup=False)


@app.command()
def speed(
    *, quick: Annotated[bool, typer.Option(help="few images, for a smoke test")] = False
) -> None:
    """Print every speed ratio that the project promises. Run it on an idle machine."""
    from forgetkit.benchmark.speed import all_ratios

    report = Table("what", "seconds", "over", "ratio", "wanted")
    for ratio in all_ratios(quick=quick):
        report.add_row(
            ratio.title,
            f"{ratio.ours:.3f}",
            f"{ratio.theirs:.3f}",
            f"{ratio.value:.3f}",
            ratio.wanted,
        )
    Console().print(report)


if __name__ == "__main__":
    app()
