"""``forgetkit inspect MODEL``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from forgetkit.cli.arguments import Download, HeadName, ModelName, NumClasses, Weights, model_folder
from forgetkit.cli.output import Json, reports_errors, show, show_json


@reports_errors
def inspect(
    model: ModelName,
    weights: Weights = None,
    num_classes: NumClasses = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels.", min=1)] = None,
    head: HeadName = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Show what the head is, where the features are and what input the model expects."""
    from forgetkit.adapting import adapt
    from forgetkit.images import example_input, preprocessing_of
    from forgetkit.loading import load_model

    # Where the head is does not depend on the weights, so an architecture alone will do.
    by_name = model.startswith(("torchvision/", "timm/"))
    loaded = load_model(
        model,
        state_dict=weights,
        num_classes=num_classes,
        allow_download=download,
        untrained=by_name and weights is None and not download,
    )
    preprocessing = preprocessing_of(loaded, model_folder(model), size)
    view = adapt(loaded, example_input(preprocessing), head=head)
    record: dict[str, object] = {
        "model": model,
        "class": type(loaded).__name__,
        "parameters": sum(p.numel() for p in loaded.parameters()),
        "head": view.head_name,
        "head_parameters": sum(p.numel() for p in view.head_parameters().values()),
        "classes": view.num_classes,
        "feature_dim": view.feature_dim,
        "feature_shape": list(view.feature_shape),
        "linear": view.linear,
        "separable": view.separable,
        "after_the_head": view.tail,
        "tied": view.tied,
        "input": [len(preprocessing.mean), *preprocessing.size],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "input_from": preprocessing.source,
    }
    if as_json:
        show_json(record)
        return
    table = Table(title=model, show_header=False)
    for name, value in record.items():
        if name != "model":
            table.add_row(name.replace("_", " "), _readable(value))
    show(table)


def _readable(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
