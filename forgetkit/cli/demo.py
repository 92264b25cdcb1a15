"""``forgetkit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from forgetkit.cli.arguments import parse_classes
from forgetkit.cli.output import Json, reports_errors, say, show, show_json
from forgetkit.errors import BadHyperparameter, BadTarget


@reports_errors
def demo(
    data: Annotated[str, typer.Option(help="digits (bundled) or fashion-mnist.")] = "digits",
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds Fashion-MNIST's four files.")
    ] = None,
    classes: Annotated[list[str] | None, typer.Option(help="What to forget; default 3.")] = None,
    using: Annotated[str, typer.Option(help="A method's name.")] = "lau",
    out: Annotated[Path, typer.Option(help="Where the models go.")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="Of training and forgetting.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Train two small models from scratch, make them forget a class, print one table."""
    from forgetkit.demo import run_demo
    from forgetkit.demo.course import DataName
    from forgetkit.method import find

    if data not in ("digits", "fashion-mnist"):
        raise BadHyperparameter(
            f"--data {data}: expected digits or fashion-mnist, found {data!r}; for images of your "
            "own use `forgetkit run MODEL --data DIR`"
        )
    wanted = parse_classes(classes or ["3"])
    labels = tuple(label for label in wanted if isinstance(label, int))
    if len(labels) != len(wanted):
        raise BadTarget(
            f"--classes {', '.join(map(str, wanted))}: expected class numbers, found names; "
            "the demo's classes are 0 to 9"
        )
    find(using)
    report = run_demo(
        cast("DataName", data),
        root=root,
        classes=labels,
        method=using,
        out=out,
        seed=seed,
        say=say,
    )
    if as_json:
        show_json(report.to_json())
        return
    show(report)
    say(f"{report.seconds:.0f} s; models, patches and images are in {out}/")
