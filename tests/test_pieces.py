"""A batch in parts."""

from __future__ import annotations

import torch

from forgetkit.per_sample import pieces
from forgetkit.types import Batch


def test_every_sample_is_in_one_piece_and_each_says_how_many_it_has() -> None:
    images = torch.arange(30.0).reshape(10, 3)
    batch = Batch({"pixel_values": images}, torch.arange(10), torch.arange(10, 20), 10)
    found = list(pieces(batch, 4))
    assert [len(one) for one in found] == [one.total for one in found] == [4, 4, 2]
    assert torch.cat([one.inputs["pixel_values"] for one in found]).equal(images)  # type: ignore[index]  # a dict
    assert torch.cat([one.labels for one in found]).tolist() == list(range(10))
    assert torch.cat([one.index for one in found]).tolist() == list(range(10, 20))
