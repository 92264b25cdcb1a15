"""``forgetkit search MODEL --data DIR --validate DIR --classes 3 --using lau --runs 20``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forgetkit.cli.arguments import (
    Download,
    HeadName,
    ModelName,
    NumClasses,
    Weights,
    parse_classes,
    parse_settings,
)
from forgetkit.cli.output import Json, reports_errors, say, show, show_json
from forgetkit.cli.run import folder_images, folder_loader, validation_images


@reports_errors
def search(
    model: ModelName,
    data: Annotated[Path, typer.Option(help="Image folder of training images.")],
    validate: Annotated[
        Path, typer.Option(help="Image folder CLASS/*.png to choose on; never test data.")
    ],
    classes: Annotated[list[str], typer.Option(help="Numbers or names: 3, 3,5 or cat.")],
    using: Annotated[str, typer.Option(help="A method's name.")],
    fields: Annotated[
        list[str] | None, typer.Option(help="Hyper-parameters to search; default: its numbers.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="What stays fixed.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Come close to this retrained model: a MODEL, or a state dict."),
    ] = None,
    runs: Annotated[int | None, typer.Option(help="Budget; default 20.", min=1)] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no run after so many.")] = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    head: HeadName = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Images a batch.", min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0)] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; default: CUDA, else CPU.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    seed: Annotated[int, typer.Option(help="Every random choice.", min=0)] = 0,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Search a method's hyper-parameters on validation images."""
    from forgetkit.loading import load_model
    from forgetkit.method import build
    from forgetkit.searching import explore

    wanted = parse_classes(classes)
    method = build(using, parse_settings(using, settings or []))
    named = [part.strip() for word in fields or () for part in word.split(",") if part.strip()]
    loaded = load_model(model, state_dict=weights, num_classes=num_classes, allow_download=download)
    retrained = None
    if reference is not None:
        file = Path(reference) if Path(reference).is_file() else None
        retrained = load_model(
            reference if file is None else model, state_dict=file, num_classes=num_classes,
            allow_download=download,
        )  # fmt: skip
    train = folder_images(loaded, model, data, size).train
    chosen_on = validation_images(loaded, model, validate, data, size)
    say(f"{len(train)} training images in {data}, {len(chosen_on)} to choose on in {validate}")
    found = explore(
        loaded,
        method,
        wanted,
        folder_loader(train, batch_size, workers),
        validate=folder_loader(chosen_on, batch_size, workers),
        reference=retrained,
        fields=named or None,
        runs=runs,
        minutes=minutes,
        seed=seed,
        device=device,
        precision=precision,
        head=head,
        say=say,
    )
    if as_json:
        show_json(found.to_json())
        return
    default = "failed" if found.default is None else f"{found.default:.4f}"
    show(f"{found.objective}: {found.value:.4f}, before the search {default}")
    show(" ".join(f"--set {name}={value}" for name, value in found.best.items()))
