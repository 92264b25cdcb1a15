"""``python -m forgetkit.benchmark``: the built-in tables and the speed report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console

from forgetkit.benchmark.datasets import Pair, digits, fashion_mnist
from forgetkit.benchmark.zoo import BUILDERS, MODEL_NAMES
from forgetkit.cli.output import reports_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forgetkit.benchmark.store import Setting
    from forgetkit.benchmark.train import TrainRecipe

app = typer.Typer(help="The tables of the docs, made again.", no_args_is_help=True)

Data: TypeAlias = Annotated[str, typer.Option(help="fashion-mnist or digits")]
Root: TypeAlias = Annotated[Path | None, typer.Option(help="folder of Fashion-MNIST")]
Device: TypeAlias = Annotated[str, typer.Option(help="where to compute")]
Limit: TypeAlias = Annotated[
    int | None, typer.Option(help="training images; models are trained on exactly these")
]
Epochs: TypeAlias = Annotated[int | None, typer.Option(help="epochs of training the models")]
Plain: TypeAlias = Annotated[
    bool, typer.Option("--plain", help="train without shifts and flips: samples are memorised")
]
Seeds: TypeAlias = Annotated[int, typer.Option(help="number of seeds")]
ModelName: TypeAlias = Annotated[str, typer.Option(help="resnet18, vit, vgg or allcnn")]
Sizes: TypeAlias = Annotated[list[int] | None, typer.Option(help="numbers of samples")]
Methods: TypeAlias = Annotated[list[str] | None, typer.Option(help="methods; default all")]
Without: TypeAlias = Annotated[list[str] | None, typer.Option(help="methods to leave out")]
Sets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", help="a hyper-parameter of a method, METHOD.NAME=VALUE; repeatable"),
]


@app.command()
@reports_errors
def table(
    data: Data = "fashion-mnist",
    root: Root = None,
    model: Annotated[
        list[str] | None, typer.Option(help="resnet18, vit, vgg or allcnn; default the first two")
    ] = None,
    seeds: Seeds = 3,
    label: Annotated[int, typer.Option(help="class to forget")] = 3,
    limit: Limit = None,
    epochs: Epochs = None,
    every: Annotated[bool, typer.Option("--every", help="a row for every method")] = False,
    method: Annotated[list[str] | None, typer.Option(help="rows of these methods alone")] = None,
    without: Without = None,
    sets: Sets = None,
    minutes: Annotated[float | None, typer.Option(help="begin no run after so long")] = None,
    device: Device = "cpu",
) -> None:
    """Train what is not in the cache, unlearn, and print one Markdown table a model."""
    from forgetkit.benchmark.table import (
        chosen_entries,
        class_table,
        markdown,
        settable,
        with_settings,
    )

    pair, named = _limited(data, root, limit)
    entries = chosen_entries(every=every, methods=method or (), without=without or ())
    entries = with_settings(entries, _by_method(sets, settable(entries)))
    for name in model or MODEL_NAMES:
        rows = class_table(
            name, pair, named, label=label, seeds=range(seeds), entries=entries, device=device,
            minutes=minutes, recipe=_recipe(name, epochs),
        )  # fmt: skip
        _show(f"\n{name}, {named}, class {label} ({pair.train.classes[label]})\n")
        _show(markdown(rows))


@app.command()
@reports_errors
def instances(
    data: Data = "fashion-mnist",
    root: Root = None,
    model: ModelName = "resnet18",
    size: Sizes = None,
    method: Methods = None,
    without: Without = None,
    sets: Sets = None,
    label: Annotated[int | None, typer.Option(help="draw samples of this class alone")] = None,
    seeds: Seeds = 1,
    limit: Limit = None,
    epochs: Epochs = None,
    plain: Plain = False,
    device: Device = "cpu",
) -> None:
    """Forget random training samples with every method for samples."""
    from forgetkit.benchmark.instances import (
        SIZES,
        instance_markdown,
        instance_methods,
        instance_table,
    )
    from forgetkit.method import find

    setting = _setting(model, data, root, limit, epochs, device, plain=plain)
    left_out = {find(name).card.slug for name in without or ()}
    methods = [slug for slug in method or instance_methods() if slug not in left_out]
    rows = instance_table(
        setting,
        sizes=size or SIZES,
        methods=methods,
        hyperparameters=_by_method(sets, methods),
        label=label,
        seeds=range(seeds),
    )
    _show(instance_markdown(rows))


@app.command()
@reports_errors
def relabel(
    data: Data = "fashion-mnist",
    root: Root = None,
    model: ModelName = "resnet18",
    size: Sizes = None,
    method: Methods = None,
    sets: Sets = None,
    seeds: Seeds = 1,
    requests: Annotated[int, typer.Option(help="requests of 8 samples in sequence, or 0")] = 16,
    limit: Limit = None,
    epochs: Epochs = None,
    plain: Plain = False,
    device: Device = "cpu",
) -> None:
    """Correct the labels of random samples, at once and in a sequence of requests."""
    from forgetkit.benchmark.relabel import (
        METHODS,
        SIZES,
        continual_table,
        relabel_markdown,
        relabel_table,
    )

    setting = _setting(model, data, root, limit, epochs, device, plain=plain)
    methods = method or METHODS
    given = _by_method(sets, methods)
    rows = relabel_table(
        setting, sizes=size or SIZES, methods=methods, hyperparameters=given, seeds=range(seeds)
    )
    _show(relabel_markdown(rows) + "\n")
    if requests:
        rows = continual_table(setting, methods=methods, hyperparameters=given, requests=requests)
        _show(relabel_markdown(rows))


@app.command()
@reports_errors
def depoison(
    data: Data = "fashion-mnist",
    root: Root = None,
    model: ModelName = "vgg",
    share: Annotated[list[float] | None, typer.Option(help="parts of the labels to flip")] = None,
    method: Methods = None,
    seeds: Seeds = 1,
    limit: Limit = None,
    epochs: Epochs = None,
    plain: Plain = False,
    device: Device = "cpu",
) -> None:
    """Flip labels within pairs of classes, train on them, and undo the effect."""
    from forgetkit.benchmark.depoison import CURES, SHARES, depoison_markdown, depoison_table

    setting = _setting(model, data, root, limit, epochs, device, plain=plain)
    cures = [cure for cure in CURES if not method or cure.method in method]
    rows = depoison_table(setting, shares=share or SHARES, cures=cures, seeds=range(seeds))
    _show(depoison_markdown(rows))


@app.command()
@reports_errors
def incremental(
    data: Data = "fashion-mnist",
    root: Root = None,
    model: ModelName = "vgg",
    size: Annotated[int, typer.Option(help="samples a request")] = 1000,
    requests: Annotated[int, typer.Option(help="requests in sequence")] = 4,
    preset: Annotated[str | None, typer.Option(help="of pgu: paper or code")] = None,
    limit: Limit = None,
    epochs: Epochs = None,
    plain: Plain = False,
    device: Device = "cpu",
) -> None:
    """Forget in several requests from one file of statistics, no retained sample at hand."""
    from forgetkit.benchmark.incremental import incremental_markdown, incremental_table

    setting = _setting(model, data, root, limit, epochs, device, plain=plain)
    settings = {} if preset is None else {"preset": preset}
    rows = incremental_table(setting, size=size, requests=requests, hyperparameters=settings)
    _show(incremental_markdown(rows))


@app.command()
@reports_errors
def settings(
    method: Annotated[str, typer.Argument(help="lau, pgu or suli")],
    data: Data = "fashion-mnist",
    root: Root = None,
    model: ModelName = "resnet18",
    images: Annotated[int, typer.Option(help="training images at hand")] = 6000,
    label: Annotated[list[int] | None, typer.Option(help="classes to forget; default all")] = None,
    limit: Limit = None,
    epochs: Epochs = None,
    device: Device = "cpu",
) -> None:
    """Forget classes in turn with the variants of one method, on the model of ``table``."""
    from forgetkit.benchmark.settings import Study, settings_markdown, settings_table

    chosen = _setting(model, data, root, limit, epochs, device, plain=False)
    labels = label or range(chosen.data.num_classes)
    _show(settings_markdown(settings_table(Study(chosen, images), method, labels)))


@app.command()
@reports_errors
def evidence(
    data: Data = "fashion-mnist",
    root: Root = None,
    model: ModelName = "vit",
    method: Methods = None,
    label: Annotated[int, typer.Option(help="class to forget")] = 3,
    limit: Limit = None,
    epochs: Epochs = None,
    level: Annotated[str, typer.Option(help="quick, standard or full")] = "full",
    device: Device = "cpu",
) -> None:
    """Audit models that forgot a class beside the original and a retrained one."""
    from forgetkit.benchmark.evidence import (
        METHODS,
        class_evidence,
        evidence_markdown,
        member_evidence,
        verdicts,
    )

    pair, named = _limited(data, root, limit)
    found = class_evidence(
        model, pair, named, label=label, methods=method or METHODS, level=level, device=device,
        recipe=_recipe(model, epochs),
    )  # fmt: skip
    _show(f"{evidence_markdown(found)}\n\n{verdicts(found)}\n")
    whole, name = _limited(data, root, None)
    _show(evidence_markdown(member_evidence(model, whole, name, level=level, device=device)))


@app.command()
@reports_errors
def alarms(
    models: Annotated[int, typer.Option(help="honest models")] = 10,
    level: Annotated[str, typer.Option(help="quick, standard or full")] = "full",
) -> None:
    """Audit models that never saw the class, and count the false alarms."""
    from forgetkit.benchmark.alarms import alarm_markdown, honest_audits

    _show(alarm_markdown(honest_audits(models, level=level)))


@app.command()
@reports_errors
def speed(
    *,
    quick: Annotated[bool, typer.Option(help="few images, for a smoke test")] = False,
    repeats: Annotated[int, typer.Option(help="measured rounds; the median counts")] = 3,
) -> None:
    """Print every speed ratio that the project promises. Run it on an idle machine."""
    from itertools import chain

    import torch

    from forgetkit.benchmark.method_speed import method_ratios
    from forgetkit.benchmark.speed import all_ratios

    torch.manual_seed(0)  # the untrained networks decide how long a run goes on
    _show("| what | seconds | over | ratio | wanted |\n| --- | ---: | ---: | ---: | --- |")
    both = (all_ratios, method_ratios)
    for ratio in chain.from_iterable(made(quick=quick, repeats=repeats) for made in both):
        _show(
            f"| {ratio.title} | {ratio.ours:.3f} | {ratio.theirs:.3f} | {ratio.value:.3f} "
            f"| {ratio.wanted} |"
        )


def _show(text: str) -> None:
    Console(soft_wrap=True).print(text, markup=False)


def _by_method(words: Sequence[str] | None, methods: Sequence[str]) -> dict[str, dict[str, object]]:
    """Read ``METHOD.NAME=VALUE`` words as hyper-parameters by method."""
    from forgetkit.cli.arguments import parse_settings
    from forgetkit.method import build

    given: dict[str, dict[str, object]] = {}
    for word in words or ():
        slug, point, setting = word.partition(".")
        if not point or slug not in methods:
            raise typer.BadParameter(
                f"--set {word}: expected METHOD.NAME=VALUE of a method of this table "
                f"({', '.join(methods)}), found {word!r}; for instance "
                f"{next(iter(methods), 'METHOD')}.epochs=100"
            )
        given.setdefault(slug, {}).update(parse_settings(slug, [setting]))
    for slug, settings in given.items():
        build(slug, settings)  # refuses what does not exist before anything is trained
    return given


def _limited(data: str, root: Path | None, limit: int | None) -> tuple[Pair, str]:
    """Return the data cut down, and a name for the cache that says to what size."""
    pair = (digits() if data == "digits" else fashion_mnist(root or Path())).limited(limit)
    return pair, data if limit is None else f"{data}-{len(pair.train)}"


def _setting(
    model: str,
    data: str,
    root: Path | None,
    limit: int | None,
    epochs: int | None,
    device: str,
    *,
    plain: bool,
) -> Setting:
    """Return model and data of a table, cut down and trained as long as asked for."""
    from forgetkit.benchmark.store import Setting

    recipe = _recipe(model, epochs)
    if plain:
        recipe = recipe.plain()
    pair, name = _limited(data, root, limit)
    return Setting(model, BUILDERS[model], recipe, pair, name, device)


def _recipe(model: str, epochs: int | None) -> TrainRecipe:
    """Return how to train a model, as long as asked for."""
    from forgetkit.benchmark.train import RECIPES

    if model not in BUILDERS:
        raise typer.BadParameter(f"expected {', '.join(BUILDERS)}, found {model}")
    return RECIPES[model] if epochs is None else replace(RECIPES[model], epochs=epochs)


if __name__ == "__main__":
    app()
