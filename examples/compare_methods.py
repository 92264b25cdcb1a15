"""Several methods on one model, each undone before the next."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from forgetkit import forget
from forgetkit.benchmark.datasets import digits
from forgetkit.benchmark.train import TrainRecipe, fit

RECIPE = TrainRecipe(
    epochs=8, lr=3e-3, optimizer="adamw", weight_decay=0.01, batch_size=32, shift=0, flip=False
)
METHODS = ("lau", "neggrad", "random_label", "finetune")


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def main() -> None:
    data = digits()
    torch.manual_seed(0)
    model = build()
    fit(model, data.train, RECIPE, quiet=True)
    request = forget(model).classes([3]).validate(DataLoader(data.test, 256)).seed(0)

    print("method        forgotten class  other classes  score  seconds")
    for name in METHODS:
        result = request.using(name).run(DataLoader(data.train, 128))
        after = result.after
        print(
            f"{name:13} {after['validation_forget'].accuracy:15.1%} "
            f"{after['validation_retain'].accuracy:14.1%} {result.us or 0:6.3f} "
            f"{sum(result.seconds.values()):8.2f}"
            + ("  rolled back: it cost too much" if result.rolled_back else "")
        )
        if not result.rolled_back:
            result.undo()


if __name__ == "__main__":
    main()
