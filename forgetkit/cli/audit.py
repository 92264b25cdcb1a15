"""``forgetkit audit MODEL --data DIR --classes 3 --original MODEL --reference MODEL``."""

from __future__ import annotations

import copy
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from forgetkit.cli.arguments import (
    Download,
    HeadName,
    ModelName,
    NumClasses,
    Output,
    Weights,
    parse_classes,
    parse_output,
)
from forgetkit.cli.output import Json, reports_errors, say, show, show_json
from forgetkit.cli.run import folder_images, folder_loader

INTERRUPTED = 130
"""Exit status after Ctrl-C; what was found so far is written and printed."""


class Level(str, Enum):
    """How much an audit does."""

    quick = "quick"
    standard = "standard"
    full = "full"


@reports_errors
def audit(
    model: ModelName,
    data: Annotated[
        Path, typer.Option(help="Image folder: CLASS/*.png, or train/CLASS and test/CLASS.")
    ],
    classes: Annotated[list[str], typer.Option(help="Forgotten classes: 3, 3,5 or cat.")],
    original: Annotated[
        str | None,
        typer.Option(help="The model before it forgot: a MODEL, or a state dict for MODEL."),
    ] = None,
    patch: Annotated[
        Path | None, typer.Option(help="The patch of the run, instead of --original.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Trained without the classes: a MODEL, or a state dict. Repeatable."),
    ] = None,
    level: Annotated[
        Level,
        typer.Option(
            help="quick fits probes on features at most, standard relearns, full takes long."
        ),
    ] = Level.quick,
    full: Annotated[bool, typer.Option("--full", help="The same as --level full.")] = False,
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="Run this check instead of all of the level. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.md.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="An .html page to write, with pictures.")
    ] = None,
    head_masked: Annotated[
        bool, typer.Option("--head-masked", help="Output rows of the classes were masked.")
    ] = False,
    weights: Weights = None,
    num_classes: NumClasses = None,
    head: HeadName = None,
    output: Output = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Images a batch.", min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0)] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; default: CUDA, else CPU.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Every random choice.", min=0)] = 0,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Find out what a model still knows of classes that it was to forget."""
    from forgetkit.auditing.run import audit as examine
    from forgetkit.loading import load_model

    wanted = parse_classes(classes)

    def loaded(name: str | None) -> nn.Module:
        """Load a model by its name; a file holds weights for the model under audit."""
        file = weights if name is None else Path(name) if Path(name).is_file() else None
        source = model if name is None or file is not None else name
        return load_model(source, state_dict=file, num_classes=num_classes, allow_download=download)

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    own = loaded(None)
    before = None if original is None else loaded(original)
    if patch is not None:
        before = _reverted(own, patch, original)
    logits = parse_output(output)
    images = folder_images(own, model, data, size, logits)
    say(f"{len(images.train)} training images, "
        f"{len(images.test) if images.test else 'no'} test images in {data}")  # fmt: skip
    found = examine(
        own,
        forget=folder_loader(images.train, batch_size, workers),
        test=None if images.test is None else folder_loader(images.test, batch_size, workers),
        classes=wanted,
        original=before,
        reference=[loaded(name) for name in reference or ()] or None,
        level="full" if full else level.value,
        metrics=metrics or None,
        device=device,
        seed=seed,
        head=head,
        output=logits,
        head_masked=head_masked,
        report=report,
        say=say,
    )
    written = []
    if out is not None:
        written = [found.save(out / "audit.json"), out / "audit.md"]
        written[1].write_text(found.markdown(), encoding="utf-8")
    if as_json:
        show_json({**found.to_json(), "saved": [str(file) for file in written]})
    else:
        show(found)
        for file in written:
            say(f"wrote {file}")
    if found.partial:
        raise typer.Exit(INTERRUPTED)


def _reverted(model: nn.Module, patch: Path, original: str | None) -> nn.Module:
    """Return the model before the edit that a patch holds."""
    from forgetkit.errors import BadHyperparameter
    from forgetkit.patch import Patch

    if original is not None:
        raise BadHyperparameter(
            "--original and --patch: expected one of the two, found both; leave out one"
        )
    before = copy.deepcopy(model)
    Patch.load(patch).revert(before)
    return before
