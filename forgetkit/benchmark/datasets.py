"""Small image data sets held in memory, at 32 x 32 pixels, one channel."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from forgetkit.errors import DataError

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530
IMAGE_SIZE = 32


class TensorImages(Dataset[tuple[Tensor, int]]):
    """Images and labels in memory, with the attributes that torchvision's data sets have.

    Args:
        images: float32, (samples, channels, height, width), already normalised.
        targets: integer labels, (samples,).
        classes: class names in label order.
    """

    def __init__(self, images: Tensor, targets: Tensor, classes: tuple[str, ...]) -> None:
        self.images = images
        self.targets = targets
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])

    def where(self, keep: Tensor) -> TensorImages:
        """Return the samples that a boolean mask or index tensor of shape (samples,) selects."""
        return TensorImages(self.images[keep], self.targets[keep], tuple(self.classes))


@dataclass(frozen=True)
class Pair:
    """A training and a test set of the same classes.

    Args:
        train: images to train on.
        test: images never trained on.
        mean: what was subtracted from pixels in [0, 1].
        std: what they were divided by then.
    """

    train: TensorImages
    test: TensorImages
    mean: float = 0.0
    std: float = 1.0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.train.classes)

    def limited(self, train: int | None, test: int | None = None) -> Pair:
        """Return a random part of each set, the same one every time; ``None`` keeps all."""
        return replace(self, train=_part_of(self.train, train), test=_part_of(self.test, test))


def _part_of(data: TensorImages, count: int | None) -> TensorImages:
    if count is None or count >= len(data):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.where(order[:count].sort().values)


def digits(seed: int = 0) -> Pair:
    """Load scikit-learn's 1 797 digits, enlarged from 8 to 32 pixels, split 3 to 1 by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None] / 16.0
    images = functional.interpolate(images, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.25, random_state=seed, stratify=labels.numpy()
    )
    mean, std = images[train].mean(), images[train].std()
    everything = TensorImages((images - mean) / std, labels, tuple("0123456789"))
    return Pair(
        everything.where(torch.from_numpy(train)),
        everything.where(torch.from_numpy(test)),
        float(mean),
        float(std),
    )


def fashion_mnist(root: str | Path) -> Pair:
    """Read Fashion-MNIST from the folder that holds its four idx files, padded to 32 pixels.

    Args:
        root: a folder with ``train-images-idx3-ubyte`` and its three companions, gzipped or not,
            or the root folder that ``torchvision.datasets.FashionMNIST`` downloaded into.

    Raises:
        DataError: a file is missing.
    """
    folder = Path(root)
    if (nested := folder / "FashionMNIST" / "raw").is_dir():
        folder = nested
    return Pair(
        _fashion_part(folder, "train"), _fashion_part(folder, "t10k"), FASHION_MEAN, FASHION_STD
    )


def _fashion_part(folder: Path, part: str) -> TensorImages:
    images = _read_idx(folder, f"{part}-images-idx3-ubyte").reshape(-1, 1, 28, 28)
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte")
    pixels = functional.pad(images.float() / 255.0, (2, 2, 2, 2))
    return TensorImages((pixels - FASHION_MEAN) / FASHION_STD, labels.long(), FASHION_CLASSES)


def _read_idx(folder: Path, name: str) -> Tensor:
    """Return the bytes of one idx file behind its header, as a flat uint8 tensor."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if packed.is_file():
        raw = gzip.decompress(packed.read_bytes())
    elif plain.is_file():
        raw = plain.read_bytes()
    else:
        raise DataError(
            f"fashion_mnist(root={str(folder)!r}): expected the file {name} or {name}.gz there, "
            "found neither; download the data set once with "
            "torchvision.datasets.FashionMNIST(root, download=True) and pass the same root"
        )
    dimensions = raw[3]
    return torch.frombuffer(bytearray(raw[4 + 4 * dimensions :]), dtype=torch.uint8)
