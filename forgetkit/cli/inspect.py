"""``forgetkit inspect MODEL``."""

from __future__ import annotations

from typing import Annotated

import typer

from forgetkit.cli.arguments import (
    Download,
    HeadName,
    ModelName,
    NumClasses,
    Output,
    Weights,
    model_folder,
    parse_output,
)
from forgetkit.cli.output import Json, reports_errors, show, show_json


@reports_errors
def inspect(
    model: ModelName,
    weights: Weights = None,
    num_classes: NumClasses = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels.", min=1)] = None,
    head: HeadName = None,
    output: Output = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Show what the head is, where the features are and what input the model expects."""
    from forgetkit.images import example_input, preprocessing_of
    from forgetkit.inspection import inspect_model
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
    expected = preprocessing_of(loaded, model_folder(model), size)
    found = inspect_model(
        loaded,
        example_input(expected),
        head=head,
        num_classes=num_classes,
        output=parse_output(output),
    )
    if as_json:
        input_shape = [len(expected.mean), *expected.size]
        described = {"shape": input_shape, "mean": expected.mean, "std": expected.std}
        show_json({**found.to_dict(), "input": {**described, "from": expected.source}})
        return
    show(found)
    height, width = expected.size
    numbers = [
        ", ".join(f"{value:.4g}" for value in part) for part in (expected.mean, expected.std)
    ]
    show(
        f"input: {len(expected.mean)} x {height} x {width}, mean {numbers[0]}, std {numbers[1]} "
        f"({expected.source})"
    )
