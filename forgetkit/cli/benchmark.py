"""``forgetkit benchmark MODEL --data DIR --classes 3 --methods lau,suli --seeds 3 --out DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forgetkit.cli.arguments import (
    Download,
    HeadName,
    NumClasses,
    Weights,
    parse_classes,
    parse_settings,
)
from forgetkit.cli.material import (
    built_in_material,
    own_material,
    refuse_beside_builtin,
    refuse_without_builtin,
)
from forgetkit.cli.output import Json, reports_errors, say, show, show_json
from forgetkit.errors import BadHyperparameter

if TYPE_CHECKING:
    from forgetkit.method import Method


@reports_errors
def benchmark(
    classes: Annotated[
        list[str],
        typer.Option(help="One target: 3, cat, or 3,5 forgotten together. Repeat for more."),
    ],
    methods: Annotated[list[str], typer.Option(help="Names: lau,suli or repeated.")],
    out: Annotated[Path, typer.Option(help="Where runs and tables go; a restart goes on there.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A transformers or timm folder, torchvision/NAME, timm/NAME or "
            "package.module:factory. With --builtin: resnet or vit, the models of the demo.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Image folder: CLASS/*.png, or train/CLASS and test/CLASS.")
    ] = None,
    builtin: Annotated[
        str | None,
        typer.Option(
            help="digits (bundled) or fashion-mnist, with a small model that is trained once."
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds Fashion-MNIST's four files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Training images of --builtin; default all.", min=1)
    ] = None,
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
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; default: CUDA, else CPU.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Run methods x seeds x classes on copies of a model, and write tables and a page.

    Under `accelerate launch -m forgetkit benchmark ...` the processes share the runs.
    """
    from forgetkit.comparing import compare
    from forgetkit.engine.place import choose_place

    targets = [parse_classes([word]) for word in classes]
    chosen = _methods(methods, settings or [])
    # Of several processes the first one alone speaks for all.
    first = choose_place(device, precision, None).rank == 0
    if builtin is not None:
        refuse_beside_builtin(
            {
                "--data": data, "--validate": validate, "--weights": weights, "--size": size,
                "--num-classes": num_classes, "--workers": workers, "--download": download,
            }
        )  # fmt: skip
        given = built_in_material(model, builtin, root=root, limit=limit, batch_size=batch_size)
    else:
        refuse_without_builtin({"--root": root, "--limit": limit})
        given = own_material(
            model,
            data,
            validate=validate,
            weights=weights,
            num_classes=num_classes,
            size=size,
            batch_size=batch_size,
            workers=workers,
            download=download,
        )
    if first:
        say(given.about)
    table = compare(
        given.model,
        given.train,
        targets,
        chosen,
        seeds,
        test=given.test,
        validate=given.validate,
        out=out,
        device=device,
        precision=precision,
        head=head,
        setting=given.setting,
        retry=retry,
        say=say,
    )
    if not first:
        return
    if as_json:
        show_json(table.to_json())
    else:
        show(table)
    say(f"wrote table.md, table.csv, table.tex, comparison.html and pictures in {out}")


def _methods(names: list[str], settings: list[str]) -> list[Method]:
    """Build the methods named, each with the settings that are for it."""
    from forgetkit.method import build

    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    words: dict[str, list[str]] = {name: [] for name in wanted}
    for word in settings:
        name, dot, rest = word.partition(".")
        if not dot or name not in words:
            setting = rest if "=" in rest else word
            raise BadHyperparameter(
                f"--set {word}: expected METHOD.NAME=VALUE with a method of --methods, found "
                f"{word!r}; for instance --set {next(iter(words), 'lau')}.{setting}"
            )
        words[name].append(rest)
    return [build(name, parse_settings(name, words[name])) for name in wanted]
