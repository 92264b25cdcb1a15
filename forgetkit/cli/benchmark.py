"""``forgetkit benchmark MODEL --data DIR --classes 3 --methods lau,suli --seeds 3 --out DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forgetkit.cli.arguments import (
    Download,
    HeadName,
    ModelName,
    NumClasses,
    Weights,
    model_folder,
    parse_classes,
    parse_settings,
)
from forgetkit.cli.output import Json, reports_errors, say, show, show_json
from forgetkit.cli.run import folder_images, folder_loader
from forgetkit.errors import BadHyperparameter

if TYPE_CHECKING:
    from forgetkit.method import Method


@reports_errors
def benchmark(
    model: ModelName,
    data: Annotated[
        Path, typer.Option(help="Image folder: CLASS/*.png, or train/CLASS and test/CLASS.")
    ],
    classes: Annotated[
        list[str],
        typer.Option(help="One target: 3, cat, or 3,5 forgotten together. Repeat for more."),
    ],
    methods: Annotated[list[str], typer.Option(help="Names: lau,suli or repeated.")],
    out: Annotated[Path, typer.Option(help="Where runs and tables go; a restart goes on there.")],
    seeds: Annotated[int, typer.Option(help="Runs of each method: seeds 0, 1, ...", min=1)] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A hyper-parameter."),
    ] = None,
    validate: Annotated[
        Path | None, typer.Option(help="Image folder that methods may stop on, not the test data.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
    weights: Weights = None,
    num_classes: NumClasses = None,
    head: HeadName = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Images a batch.", min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0)] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the best.")] = None,
    precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Run methods x seeds x classes on copies of a model, and write one table."""
    from forgetkit.comparing import compare
    from forgetkit.images import preprocessing_of
    from forgetkit.loading import load_model

    targets = [parse_classes([word]) for word in classes]
    chosen = _methods(methods, settings or [])
    loaded = load_model(model, state_dict=weights, num_classes=num_classes, allow_download=download)
    images = folder_images(loaded, model, data, size)
    held_out = None
    if validate is not None:
        held_out = folder_loader(
            folder_images(loaded, model, validate, size).train, batch_size, workers
        )
    fits = preprocessing_of(loaded, model_folder(model), size)
    say(f"{len(images.train)} training images, "
        f"{len(images.test) if images.test else 'no'} test images in {data}")  # fmt: skip
    table = compare(
        loaded,
        folder_loader(images.train, batch_size, workers),
        targets,
        chosen,
        seeds,
        test=None if images.test is None else folder_loader(images.test, batch_size, workers),
        validate=held_out,
        out=out,
        device=device,
        precision=precision,
        head=head,
        setting={
            "input": f"{fits.size}, crop {fits.crop}, {fits.mean}, {fits.std}",
            "batch size": str(batch_size),
        },
        retry=retry,
        say=say,
    )
    if as_json:
        show_json(table.to_json())
    else:
        show(table)
    say(f"wrote table.md, table.csv and table.tex in {out}")


def _methods(names: list[str], settings: list[str]) -> list[Method]:
    """Build the methods named, each with the settings that are for it."""
    from forgetkit.method import build

    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    words: dict[str, list[str]] = {name: [] for name in wanted}
    for word in settings:
        name, dot, rest = word.partition(".")
        if not dot or name not in words:
            raise BadHyperparameter(
                f"--set {word}: expected METHOD.NAME=VALUE with a method of --methods, found "
                f"{word!r}; for instance --set {next(iter(words), 'lau')}.{rest or 'epochs=5'}"
            )
        words[name].append(rest)
    return [build(name, parse_settings(name, words[name])) for name in wanted]
