"""A toy CNN and a toy ViT, trained in a second on separable image blobs."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

CLASSES = 4
SIZE = 8
PER_CLASS = 60


class ToyCNN(nn.Module):
    """Two convolutions with batch normalisation and a linear head; (batch, 1, 8, 8) to logits."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        pooled = functional.adaptive_avg_pool2d(self.body(images), 1).flatten(1)
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits


class ToyViT(nn.Module):
    """Patches, a class token, one block of attention and a linear head."""

    def __init__(self, classes: int = CLASSES, dim: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 5, dim) * 0.02)
        self.block = nn.TransformerEncoderLayer(
            dim, 2, 2 * dim, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def init_weights(self) -> None:
        """Draw the class token and the positions anew."""
        nn.init.normal_(self.token, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        tokens = rearrange(self.patches(images), "batch dim h w -> batch (h w) dim")
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        logits: Tensor = self.head(self.norm(self.block(tokens + self.position))[:, 0])
        return logits


TOYS: dict[str, type[nn.Module]] = {"cnn": ToyCNN, "vit": ToyViT}


def blobs(per_class: int = PER_CLASS, seed: int = 0) -> TensorDataset:
    """Return noisy images of four fixed patterns: (4 x per_class, 1, 8, 8) and labels."""
    generator = Generator().manual_seed(1234)
    patterns = torch.randn(CLASSES, 1, SIZE, SIZE, generator=generator)
    labels = torch.arange(CLASSES).repeat(per_class)
    noise = Generator().manual_seed(seed)
    images = patterns[labels] + 0.7 * torch.randn(len(labels), 1, SIZE, SIZE, generator=noise)
    return TensorDataset(images, labels)


@dataclass(frozen=True)
class Toy:
    """A trained toy model and its data.

    Args:
        model: a fresh copy, in train mode as a user's model may be.
        train: training samples.
        test: samples it never saw.
    """

    model: nn.Module
    train: TensorDataset
    test: TensorDataset

    def loader(self, batch_size: int = 32) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader over the training samples."""
        return DataLoader(self.train, batch_size=batch_size)

    def forget_loader(self, label: int = 3, batch_size: int = 32) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader over the training samples of one class."""
        images, labels = self.train.tensors
        own = labels == label
        return DataLoader(TensorDataset(images[own], labels[own]), batch_size=batch_size)

    def accuracy(self, data: TensorDataset, labels: list[int]) -> float:
        """Return the model's accuracy in eval mode on the samples of some classes."""
        images, targets = data.tensors
        own = torch.isin(targets, torch.tensor(labels))
        twin = copy.deepcopy(self.model).eval()
        some = next(twin.parameters())
        with torch.no_grad():
            logits = twin(images[own].to(some)).cpu()
        return float((logits.argmax(dim=1) == targets[own]).float().mean())


@functools.cache
def _trained(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TOYS[kind]()
        images, labels = blobs().tensors
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(8):
            for rows in torch.randperm(len(labels)).split(32):
                loss = functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model


def toy(kind: str) -> Toy:
    """Return a trained toy (``"cnn"`` or ``"vit"``); training happens once a process."""
    return Toy(copy.deepcopy(_trained(kind)), blobs(), blobs(seed=1))


class Exploding(Dataset[tuple[Tensor, int]]):
    """A data set that must not be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise AssertionError(f"sample {index} was read, though no method may need it")
