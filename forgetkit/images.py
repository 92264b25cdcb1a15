"""Image folders as data sets that fit a model: its input size, its normalisation, its labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from forgetkit.errors import DataError
from forgetkit.listed import shortened

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "val", "valid", "validation")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the model's input.

    Args:
        size: height and width of the input, in pixels.
        mean: subtracted from values in [0, 1], one a channel.
        std: divided by, one a channel.
        crop: share of the resized image's shorter side that the central crop keeps, in (0, 1];
            1 resizes straight to ``size`` without a crop.
        source: where these numbers come from, for messages.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
    source: str

    def transform(self) -> Callable[[Image], Tensor]:
        """Return the deterministic transform, PIL image -> (channels, height, width) float32."""
        from torchvision import transforms

        height, width = self.size
        steps: list[Callable[..., object]] = []
        if len(self.mean) == 1:
            steps.append(transforms.Grayscale(1))
        if self.crop < 1.0 and height == width:
            steps += [transforms.Resize(round(height / self.crop)), transforms.CenterCrop(height)]
        else:
            steps.append(transforms.Resize((height, width)))
        steps += [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        composed: Callable[[Image], Tensor] = transforms.Compose(steps)
        return composed


def preprocessing_of(
    model: nn.Module, folder: str | Path | None = None, size: int | None = None
) -> Preprocessing:
    """Find out what input a model was trained on.

    Looked at in this order: ``preprocessor_config.json`` in the model's folder (transformers),
    the model's ``pretrained_cfg`` (timm), the image size in its config; else ImageNet's
    normalisation at 224 pixels. The number of channels is that of the first convolution.

    Args:
        model: the classifier.
        folder: where it was loaded from, when it was a folder.
        size: overrules the input size, in pixels.

    Raises:
        DataError: the folder's ``preprocessor_config.json`` cannot be read.
    """
    channels = _channels(model)
    found = _of_transformers(folder, channels) or _of_timm(model, channels)
    if found is None:
        mean, std = _per_channel(IMAGENET_MEAN, channels), _per_channel(IMAGENET_STD, channels)
        pixels = _built_size(model)
        crop = 0.875 if pixels is None else 1.0
        found = Preprocessing(pixels or (224, 224), mean, std, crop, "the ImageNet default")
    if size is None:
        return found
    return Preprocessing((size, size), found.mean, found.std, found.crop, found.source)


@dataclass(frozen=True)
class FolderPair:
    """An image folder as data sets.

    Args:
        train: what the model was trained on, forget and retain samples together.
        test: images never trained on, or ``None`` when the folder has none.
        classes: class names in the order of the model's outputs; ``""`` where no folder is.
    """

    train: ImageFiles
    test: ImageFiles | None
    classes: list[str]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with labels, decoded when they are asked for.

    Args:
        files: path and label of each sample.
        classes: class names by label.
        transform: from a PIL image to the model's input.
        root: the folder that holds the classes' folders, for the record.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        classes: Sequence[str],
        transform: Callable[[Image], Tensor],
        root: Path,
    ) -> None:
        self.root = root
        self.files = list(files)
        self.targets = [label for _, label in files]
        self.classes = list(classes)
        self._transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image (channels, height, width) and label.

        Raises:
            DataError: the file is no image.
        """
        from PIL import Image, UnidentifiedImageError

        path, label = self.files[index]
        try:
            with Image.open(path) as opened:
                return self._transform(opened.convert("RGB")), label
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(
                f"--data: expected an image in {path}, found something else ({error}); remove or "
                "repair the file"
            ) from error


def holds_training_images(root: str | Path) -> bool:
    """Return whether a folder has a part of its own for training images, ``train/`` or the like."""
    return _first_folder(Path(root), TRAIN_FOLDERS) is not None


def read_folder(
    root: str | Path,
    preprocessing: Preprocessing,
    num_classes: int,
    names: Mapping[int, str] | None = None,
) -> FolderPair:
    """Read a folder with one folder of images a class, or with ``train/`` and ``test/`` of such.

    A class folder's label is, in this order: the model's label of that name, the folder's name
    when all of them are numbers, or its place in alphabetical order when there are exactly as
    many folders as classes.

    Args:
        root: the folder.
        preprocessing: what the model expects.
        num_classes: how many classes the model tells apart.
        names: the model's class names by label, when it has any.

    Raises:
        DataError: no such folder, no images, or labels that cannot be told.
    """
    top = Path(root)
    if not top.is_dir():
        raise DataError(
            f"--data {top}: expected a folder of images, found "
            f"{'a file' if top.exists() else 'nothing there'}; pass the folder that holds one "
            "folder a class"
        )
    train_root = _first_folder(top, TRAIN_FOLDERS) or top
    test_root = _first_folder(top, TEST_FOLDERS) if train_root != top else None
    labels = _labels(_class_folders(train_root, test_root), num_classes, names or {}, top)
    transform = preprocessing.transform()
    classes = [""] * num_classes
    for name, label in labels.items():
        classes[label] = name
    train = ImageFiles(_files(train_root, labels), classes, transform, train_root)
    test = None
    if test_root is not None:
        test = ImageFiles(_files(test_root, labels), classes, transform, test_root)
    if len(train) == 0:
        raise DataError(
            f"--data {top}: expected images in {train_root}, found class folders without any; "
            f"known file types are {', '.join(SUFFIXES)}"
        )
    return FolderPair(train, test if test is not None and len(test) else None, classes)


def _labels(
    folders: Sequence[str], num_classes: int, names: Mapping[int, str], top: Path
) -> dict[str, int]:
    known = {name.lower(): label for label, name in names.items()}
    if not folders:
        raise DataError(
            f"--data {top}: expected one folder of images for each class, found no folders; "
            "the layout is DIR/CLASS/image.jpg or DIR/train/CLASS/image.jpg"
        )
    if all(name.lower() in known for name in folders):
        return {name: known[name.lower()] for name in folders}
    if all(name.isdecimal() for name in folders):
        numbers = {name: int(name) for name in folders}
        if max(numbers.values()) < num_classes:
            return numbers
    if len(folders) == num_classes:
        return {name: label for label, name in enumerate(folders)}
    shown = shortened(folders, 5)
    raise DataError(
        f"--data {top}: expected {num_classes} class folders, or folders named by label or by the "
        f"model's own class names, found {len(folders)}: {shown}; rename the folders to labels "
        f"0 to {num_classes - 1}"
    )


def _class_folders(*roots: Path | None) -> list[str]:
    found = {
        entry.name
        for root in roots
        if root is not None
        for entry in root.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }
    return sorted(found)


def _files(root: Path, labels: Mapping[str, int]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for name, label in labels.items()
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _of_transformers(folder: str | Path | None, channels: int) -> Preprocessing | None:
    if folder is None or not (file := Path(folder) / "preprocessor_config.json").is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        resized = _height_width(config.get("size", 224))
        cropped = bool(config.get("do_center_crop")) and "crop_size" in config
        size = _height_width(config["crop_size"]) if cropped else resized
        normalised = config.get("do_normalize", True)
        mean = tuple(map(float, config.get("image_mean", IMAGENET_MEAN)))
        std = tuple(map(float, config.get("image_std", IMAGENET_STD)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: expected the size, image_mean and image_std of a transformers image "
            f"processor, found {type(error).__name__}: {error}; repair or remove the file"
        ) from error
    if not normalised:
        mean, std = (0.0,), (1.0,)
    crop = min(size[0] / resized[0], 1.0) if cropped else 1.0
    return Preprocessing(
        size, _per_channel(mean, channels), _per_channel(std, channels), crop, str(file)
    )


def _height_width(value: object) -> tuple[int, int]:
    """Read the size forms of image processors: a number, height and width, or a shortest edge."""
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        return (int(edge), int(edge)) if edge else (int(value["height"]), int(value["width"]))
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[1])
    return int(str(value)), int(str(value))


def _of_timm(model: nn.Module, channels: int) -> Preprocessing | None:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(config, Mapping) or "mean" not in config:
        return None
    size = _built_size(model) or tuple(config.get("input_size", (3, 224, 224))[-2:])
    return Preprocessing(
        (int(size[0]), int(size[1])),
        _per_channel(tuple(map(float, config["mean"])), channels),
        _per_channel(tuple(map(float, config["std"])), channels),
        float(config.get("crop_pct") or 1.0),
        "the model's pretrained_cfg",
    )


def _built_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the input size that a model was built for and insists on, if it tells."""
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", None)
    if size is None:
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None:
        size = getattr(model, "image_size", None)  # torchvision's vision transformers
    if isinstance(size, int):
        return size, size
    if isinstance(size, (tuple, list)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


def _channels(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Repeat or average normalisation constants when the model has another channel count."""
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels


def example_input(preprocessing: Preprocessing) -> Tensor:
    """Return one blank image as the model's input, (1, channels, height, width)."""
    return torch.zeros(1, len(preprocessing.mean), *preprocessing.size)
