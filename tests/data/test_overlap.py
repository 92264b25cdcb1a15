"""Which samples two loaders share, as far as they can tell."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from forgetkit.data.overlap import check_held_out, in_common
from forgetkit.errors import DataError

DATA = TensorDataset(torch.arange(20.0).reshape(20, 1), torch.arange(20) % 5)
WHOLE = DataLoader(DATA, batch_size=4)
BATCHES = [(torch.zeros(2, 1), torch.tensor([0, 1]))]


def drawn(*rows: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(DATA, batch_size=4, sampler=SubsetRandomSampler(rows))


ALIKE = {
    "one loader": (WHOLE, WHOLE, "the same loader"),
    "one list": (BATCHES, BATCHES, "the same loader"),
    "two loaders": (WHOLE, DataLoader(DATA, 5, shuffle=True), "20 of the same samples"),
    "a loader and its data set": (WHOLE, DATA, "20 of the same samples"),
    "parts that meet": (Subset(DATA, [1, 2, 3]), Subset(DATA, [3, 4, 2]), "2 of the same samples"),
    "a part of a part": (Subset(Subset(DATA, [4, 5, 6]), [1]), WHOLE, "1 of the same samples"),
    "samplers that meet": (drawn(1, 2), drawn(2, 3), "1 of the same samples"),
    "one data set of batches": (
        DataLoader(BATCHES, batch_size=None),  # type: ignore[arg-type]  # works in torch
        DataLoader(BATCHES, batch_size=None),  # type: ignore[arg-type]  # works in torch
        "the same data set",
    ),
}
APART = {
    "parts": tuple(random_split(DATA, [0.5, 0.5])),
    "samplers": (drawn(1, 2), drawn(3, 4)),
    "data sets": (WHOLE, TensorDataset(*DATA.tensors)),
    "a stream": (WHOLE, iter(WHOLE)),
    "lists": (BATCHES, list(BATCHES)),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_shared_is_said(name: str) -> None:
    one, other, words = ALIKE[name]
    assert in_common(one, other) == in_common(other, one) == words
    with pytest.raises(DataError, match=f"test: .* of loader, found {words} in both"):
        check_held_out("test", one, {"retain": None, "loader": other})


@pytest.mark.parametrize("name", APART)
def test_what_shares_nothing_or_cannot_be_told_passes(name: str) -> None:
    one, other = APART[name]
    assert in_common(one, other) == in_common(other, one) == ""
    check_held_out("test", one, {"loader": other})
