"""The demo's data as image files, so that the other commands have a folder to work on."""

from __future__ import annotations

from pathlib import Path

import torch

from forgetkit.benchmark.datasets import Pair, TensorImages


def write_pictures(data: Pair, folder: Path) -> Path:
    """Write ``train/CLASS/NUMBER.png`` and ``test/CLASS/NUMBER.png``, 8 bits a pixel.

    Args:
        data: one-channel images.
        folder: created when it does not exist; files of the same name are replaced.
    """
    for part, samples in (("train", data.train), ("test", data.test)):
        _write_part(samples, data, folder / part)
    return folder


def _write_part(samples: TensorImages, data: Pair, folder: Path) -> None:
    from PIL import Image

    pixels = ((samples.images[:, 0] * data.std + data.mean) * 255).round().clamp(0, 255)
    for label, name in enumerate(samples.classes):
        (folder / name.replace("/", "-")).mkdir(parents=True, exist_ok=True)
        for number in torch.nonzero(samples.targets == label).flatten().tolist():
            image = Image.fromarray(pixels[number].to(torch.uint8).numpy())
            image.save(folder / name.replace("/", "-") / f"{number:05d}.png")
