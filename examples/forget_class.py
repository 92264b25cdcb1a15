"""Train a small network on digits, make it forget the digit 3, look at every digit, undo."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from forgetkit import forget
from forgetkit.benchmark.datasets import TensorImages, digits
from forgetkit.benchmark.train import TrainRecipe, fit

RECIPE = TrainRecipe(
    epochs=8, lr=3e-3, optimizer="adamw", weight_decay=0.01, batch_size=32, shift=0, flip=False
)


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@torch.no_grad()
def by_digit(model: nn.Module, data: TensorImages) -> list[float]:
    right = (model(data.images).argmax(dim=1) == data.targets).float()
    return [float(right[data.targets == digit].mean()) for digit in range(10)]


def main() -> None:
    data = digits()
    torch.manual_seed(0)
    model = build()
    fit(model, data.train, RECIPE, quiet=True)
    before = by_digit(model, data.test)

    result = forget(model).classes([3]).using("lau").seed(0).run(DataLoader(data.train, 128))
    after = by_digit(model, data.test)
    print(result)

    result.undo()
    undone = by_digit(model, data.test)
    print("digit  before  after  undone")
    for digit in range(10):
        print(f"{digit:5} {before[digit]:7.1%} {after[digit]:6.1%} {undone[digit]:7.1%}")


if __name__ == "__main__":
    main()
