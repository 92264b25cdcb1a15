"""Sets joined anew for each epoch draw their augmentations anew."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from forgetkit.data.split import split
from forgetkit.data.views import Joined
from forgetkit.goal import Instances
from forgetkit.testing import toy


class Drawn(Dataset[tuple[Tensor, int]]):
    """Writes a random number into every image, as random augmentation would."""

    seen: ClassVar[list[float]] = []

    def __init__(self) -> None:
        self.images, self.labels = toy("cnn").train.tensors

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].clone()
        image[0, 0, 0] = torch.rand(())
        return image, int(self.labels[index])


@pytest.mark.slow
def test_joined_sets_draw_augmentations_anew_in_every_epoch() -> None:
    parts = split(
        DataLoader(Drawn(), batch_size=8, num_workers=1),
        Instances((0, 1, 2)),
        num_classes=4,
        forget_classes=(),
    )
    assert parts.retain is not None
    draws = []
    for _ in range(2):
        joined = Joined(parts.forget, parts.retain)
        seen = [batch.inputs[:, 0, 0, 0] for batch in joined.batches(8)]  # type: ignore[index]  # tensors
        draws.append(torch.cat(seen))
    assert not torch.equal(*draws)
    assert not torch.equal(draws[0][:3].sort().values, draws[0][3:6].sort().values)
