"""Model and data of a benchmark: the user's own, or the built-in ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import DataLoader

from forgetkit.cli.arguments import model_folder
from forgetkit.cli.run import folder_images, folder_loader, validation_images
from forgetkit.errors import BadHyperparameter


@dataclass(frozen=True)
class Material:
    """What the methods of a benchmark run on.

    Args:
        model: trained.
        train: what it was trained on.
        test: what it never saw, if there is any.
        about: one sentence about the data.
        validate: what methods may stop on.
        setting: words about the data that tell runs from others.
    """

    model: nn.Module
    train: DataLoader[tuple[Tensor, int]]
    test: DataLoader[tuple[Tensor, int]] | None
    about: str
    validate: DataLoader[tuple[Tensor, int]] | None = None
    setting: dict[str, str] = field(default_factory=dict)


def own_material(
    name: str | None,
    data: Path | None,
    *,
    validate: Path | None,
    weights: Path | None,
    num_classes: int | None,
    size: int | None,
    batch_size: int,
    workers: int,
    download: bool,
) -> Material:
    """Load a checkpoint and an image folder.

    Raises:
        BadHyperparameter: one of the two is not named.
        ForgetkitError: the model or the folder cannot be loaded.
    """
    from forgetkit.images import preprocessing_of
    from forgetkit.loading import load_model

    if name is None or data is None:
        raise BadHyperparameter(
            f"{'MODEL' if name is None else '--data'}: expected a model and an image folder, found "
            f"no {'model' if name is None else 'folder'}; name both, or --builtin digits"
        )
    model = load_model(name, state_dict=weights, num_classes=num_classes, allow_download=download)
    images = folder_images(model, name, data, size)
    fits = preprocessing_of(model, model_folder(name), size)
    held_out = None
    if validate is not None:
        never_seen = validation_images(model, name, validate, data, size)
        held_out = folder_loader(never_seen, batch_size, workers)
    return Material(
        model,
        folder_loader(images.train, batch_size, workers),
        None if images.test is None else folder_loader(images.test, batch_size, workers),
        f"{len(images.train)} training images, "
        f"{len(images.test) if images.test else 'no'} test images in {data}",
        held_out,
        {
            "input": f"{fits.size}, crop {fits.crop}, {fits.mean}, {fits.std}",
            "batch size": str(batch_size),
        },
    )


def built_in_material(
    name: str | None, data: str, *, root: Path | None, limit: int | None, batch_size: int
) -> Material:
    """Load a model of the demo and its data; the model is trained once and kept.

    Raises:
        BadHyperparameter: there is no such model or data set.
        DataError: Fashion-MNIST without a folder that holds it.
    """
    from forgetkit.demo.kept import NETWORKS, kept_model

    network = name or NETWORKS[0]
    model, pair = kept_model(network, data, root=root, limit=limit)
    return Material(
        model,
        DataLoader(pair.train, batch_size),
        DataLoader(pair.test, 256),
        f"{network} trained on {len(pair.train)} images of {data}, {len(pair.test)} test images",
        None,
        {"builtin": data, "batch size": str(batch_size)},
    )


def refuse_without_builtin(given: Mapping[str, object]) -> None:
    """Refuse options that mean nothing for data of the user's own.

    Args:
        given: by option, what was passed.

    Raises:
        BadHyperparameter: one of them was passed.
    """
    for option, value in given.items():
        if value is not None:
            raise BadHyperparameter(
                f"{option}: expected it beside --builtin, found no --builtin; leave it out, or "
                "name --builtin fashion-mnist"
            )


def refuse_beside_builtin(given: Mapping[str, object]) -> None:
    """Refuse options that mean nothing for built-in data.

    Args:
        given: by option, what was passed.

    Raises:
        BadHyperparameter: one of them was passed.
    """
    named = [option for option, value in given.items() if value]
    if named:
        raise BadHyperparameter(
            f"{named[0]}: expected it beside a model and images of your own, found it beside "
            "--builtin, which brings both; leave out one of the two"
        )
