"""``python -m forgetkit.benchmark``: the built-in table and the speed report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
    *,
    quick: Annotated[bool, typer.Option(help="few images, for a smoke test")] = False,
    repeats: Annotated[int, typer.Option(help="measured rounds; the median counts")] = 3,
) -> None:
    """Print every speed ratio that the project promises. Run it on an idle machine."""
    from forgetkit.benchmark.speed import all_ratios

    console = Console(soft_wrap=True)
    console.print("| what | seconds | over | ratio | wanted |\n| --- | ---: | ---: | ---: | --- |")
    for ratio in all_ratios(quick=quick, repeats=repeats):
        console.print(
            f"| {ratio.title} | {ratio.ours:.3f} | {ratio.theirs:.3f} | {ratio.value:.3f} "
            f"| {ratio.wanted} |",
            markup=False,
        )


if __name__ == "__main__":
    app()
