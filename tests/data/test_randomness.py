from __future__ import annotations

import torch

from forgetkit.data.randomness import same


def test_batches_are_the_same_to_the_last_bit_of_every_entry() -> None:
    one, other = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3)
    assert same(one, other)
    assert same({"pixels": one, "mask": one}, {"pixels": other, "mask": other})
    other[1, 2] += 1e-6
    assert not same(one, other)
    assert not same({"pixels": one, "mask": one}, {"pixels": one, "mask": other})
    assert not same(one, {"pixels": one})
