"""``forgetkit run MODEL --data DIR --classes 3 --using lau --out DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from forgetkit.cli.arguments import (
    Download,
    HeadName,
    ModelName,
    NumClasses,
    Output,
    Weights,
    label_names,
    model_folder,
    parse_classes,
    parse_output,
    parse_settings,
)
from forgetkit.cli.output import ROLLED_BACK, Json, reports_errors, say, show, show_json
from forgetkit.errors import BadHyperparameter

if TYPE_CHECKING:
    from forgetkit.api import Request
    from forgetkit.images import FolderPair, ImageFiles


@reports_errors
def run(
    model: ModelName,
    data: Annotated[
        Path, typer.Option(help="Image folder: CLASS/*.png, or train/CLASS and test/CLASS.")
    ],
    classes: Annotated[list[str], typer.Option(help="Numbers or names: 3, 3,5 or cat.")],
    out: Annotated[Path, typer.Option(help="Where the edited model goes, in its own format.")],
    using: Annotated[str, typer.Option(help="A method's name, or auto.")] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A hyper-parameter; for auto: seconds, or a file."
        ),
    ] = None,
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
    precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    seed: Annotated[int, typer.Option(help="Every random choice.", min=0)] = 0,
    patch: Annotated[
        Path | None, typer.Option(help="Also write the edit as a patch, which can undo it.")
    ] = None,
    resumable: Annotated[
        Path | None,
        typer.Option(help="Keep progress here; the same command goes on after an interruption."),
    ] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Make a model forget classes of an image folder, and save it."""
    from forgetkit.checkpoint import refuse_folder
    from forgetkit.loading import load_model
    from forgetkit.saving import holds_a_save, refuse_in_use
    from forgetkit.whole_files import refuse_unwritable

    wanted = parse_classes(classes)
    chosen = parse_settings(using, settings or [])
    _refuse_same(out, model)  # before the work, not after it
    refuse_in_use(out)
    if holds_a_save(out):
        say(f"{out} holds an earlier save, which this one will replace")
    if patch is not None:
        refuse_folder(patch)
    refuse_unwritable(out / "model")  # in the folder, where there is one already,
    for place in (out, patch):  # and beside it, where a save is made before it takes its name
        if place is not None:
            refuse_unwritable(place)
    loaded = load_model(model, state_dict=weights, num_classes=num_classes, allow_download=download)
    logits = parse_output(output)
    images = folder_images(loaded, model, data, size, logits)
    request = _request(loaded, images, wanted, using, chosen, batch_size, workers)
    if head is not None or logits is not None:
        request = request.head(head, output=logits)
    if device is not None or precision is not None:
        request = request.on(device, mixed_precision=precision)
    if resumable is not None:
        request = request.resumable(resumable)
    say(f"{len(images.train)} training images, "
        f"{len(images.test) if images.test else 'no'} test images in {data}")  # fmt: skip
    result = request.seed(seed).run(folder_loader(images.train, batch_size, workers))
    saved = [] if result.rolled_back else result.save(out)
    if patch is not None and not result.rolled_back:
        saved.append(result.patch.save(patch))
    if as_json:
        show_json({**result.to_json(), "saved": [str(file) for file in saved]})
    else:
        show(result)
        for file in saved:
            say(f"wrote {file}")
    if result.rolled_back:
        say("rolled back: nothing was saved")
        raise typer.Exit(ROLLED_BACK)


def _refuse_same(out: Path, model: str) -> None:
    folder = model_folder(model)
    if folder is not None and folder.resolve() == out.resolve():
        raise BadHyperparameter(
            f"--out {out}: expected another folder than MODEL, found the same; choose a new one, "
            "for the model that came in is what the edited one is compared with"
        )


def folder_images(
    loaded: nn.Module,
    name: str,
    data: Path,
    size: int | None,
    output: str | int | None = None,
) -> FolderPair:
    """Read the folder the way the model's own preprocessing says."""
    from forgetkit.adapting import width_of
    from forgetkit.images import example_input, preprocessing_of, read_folder
    from forgetkit.model_errors import in_one_sentence

    preprocessing = preprocessing_of(loaded, model_folder(name), size)
    with in_one_sentence(f"MODEL {name}"):
        width = width_of(loaded, example_input(preprocessing), output)
    return read_folder(data, preprocessing, width, label_names(loaded))


def validation_images(
    loaded: nn.Module, name: str, validate: Path, data: Path, size: int | None
) -> ImageFiles:
    """Read the folder of ``--validate``.

    Raises:
        BadHyperparameter: it is that of the training images, or holds them in a part of its own.
    """
    from forgetkit.images import holds_training_images

    if validate.resolve() == data.resolve() or holds_training_images(validate):
        raise BadHyperparameter(
            f"--validate {validate}: expected a folder of classes without training images, found "
            "one that holds them, too; pass the part that the model never saw, for instance "
            f"{validate / 'val'}"
        )
    return folder_images(loaded, name, validate, size).train


def _request(
    loaded: nn.Module,
    images: FolderPair,
    classes: list[int | str],
    using: str,
    settings: dict[str, object],
    batch_size: int,
    workers: int,
) -> Request:
    from forgetkit.api import forget

    request = forget(loaded).classes(classes).using(using, **settings)
    if images.test is not None:
        request = request.validate(folder_loader(images.test, batch_size, workers))
    return request


def folder_loader(
    images: ImageFiles, batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, int]]:
    """Return a loader over a folder's images, in their order."""
    return DataLoader(images, batch_size=batch_size, num_workers=workers)
