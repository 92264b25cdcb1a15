"""Forget forty training images until they are classified like images never trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget

CLASSES, SIZE = 4, 32
FORGET, KEEP = slice(0, 40), slice(40, None)


def blobs(count: int, seed: int) -> TensorDataset:
    """Make noisy points around one centre a class: too noisy to classify without memorising."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(CLASSES, (count,), generator=draws)
    points = centres[labels] + 3 * torch.randn(count, SIZE, generator=draws)
    return TensorDataset(points, labels)


def train(model: nn.Module, data: TensorDataset) -> None:
    points, labels = data.tensors
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(model(points), labels).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, points: Tensor, labels: Tensor) -> float:
    return float((model(points).argmax(dim=1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    data, unseen = blobs(300, seed=1), blobs(300, seed=2)
    model = nn.Sequential(nn.Linear(SIZE, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    train(model, data)
    points, labels = data.tensors
    request = forget(model).instances(range(40)).using("random_label", retain="mix", lr=0.01)

    print("accuracy on    forget set  other training images  unseen images")
    for state in ("before", "after"):
        if state == "after":  # the unseen images tell where to stop
            validated = request.validate(DataLoader(unseen, 100)).seed(0)
            validated.run(DataLoader(data, 50), guard=None)
        lost, kept = (accuracy(model, points[part], labels[part]) for part in (FORGET, KEEP))
        print(f"{state:12} {lost:12.1%} {kept:22.1%} {accuracy(model, *unseen.tensors):14.1%}")


if __name__ == "__main__":
    main()
