"""Digits and a small convolutional net that learns some of them, for several tests."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional


def shuffled_digits() -> tuple[Tensor, Tensor]:
    """Return all digits, images (1797, 1, 8, 8) in [0, 1], and labels, in a fixed random order."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images / 16, dtype=torch.float32)[order][:, None]
    return images, torch.tensor(found.target)[order].long()


def learned(
    images: Tensor, labels: Tensor, *, seed: int, epochs: int, batch_size: int, norm: bool = True
) -> nn.Module:
    """Return a small convolutional net that was trained on these."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
    drawing = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=drawing).split(batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()
