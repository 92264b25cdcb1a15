"""Forms of a batch: what is read, and what is refused with a sentence."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from forgetkit.data.batches import IMAGE_KEYS, LABEL_KEYS, Reader, is_finite
from forgetkit.data.labels import normalised
from forgetkit.errors import DataError

X, Y = torch.arange(12.0).reshape(3, 1, 2, 2), torch.tensor([0, 2, 1])


class Fields(NamedTuple):
    image: Tensor
    label: Tensor


class Unnamed(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    pixel_values: Tensor
    labels: Tensor


@pytest.mark.parametrize(
    "raw",
    [
        (X, Y),
        [X, Y],
        *({key: X, "labels": Y} for key in IMAGE_KEYS),
        *({"image": X, key: Y} for key in LABEL_KEYS),
        {"img": X, "fine_label": Y, "coarse_label": Y},
        {"pixel_values": X, "labels": Y, "path": ["a", "b", "c"]},
        UserDict(pixel_values=X, labels=Y),
        SimpleNamespace(image=X, target=Y),
        Record(X, Y),
        Fields(X, Y),
        Unnamed(X, Y),
        (X, Y.tolist()),
        (X, Y.numpy()),
    ],
)
def test_forms(raw: object) -> None:
    inputs, labels = Reader("loader").read(raw)
    assert isinstance(inputs, Tensor)
    assert torch.equal(inputs, X)
    assert torch.equal(normalised(labels, 3, "loader"), Y)


def test_what_stands_beside_pixel_values_is_passed_by_keyword() -> None:
    mask = torch.ones(3, 4)
    for raw in (
        {"pixel_values": X, "pixel_mask": mask, "labels": Y, "path": ["a", "b", "c"]},
        SimpleNamespace(pixel_values=X, pixel_mask=mask, labels=Y),
    ):
        inputs, _ = Reader("loader").read(raw)
        assert not isinstance(inputs, Tensor)
        assert inputs.keys() == {"pixel_values", "pixel_mask"}
    inputs, _ = Reader("loader").read(({"a": X, "b": mask}, Y))
    assert not isinstance(inputs, Tensor)
    assert inputs.keys() == {"a", "b"}


def test_a_batch_of_transformers() -> None:
    from transformers import BatchFeature

    inputs, labels = Reader("loader").read(BatchFeature({"pixel_values": X, "labels": Y}))
    assert inputs is X
    assert labels is Y


PICTURE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (X, "one tensor of shape"),
        ((X,), "found tuple of 1 entries"),
        ((X, Y, Y), "found tuple of 3 entries"),
        (None, "found NoneType"),
        ("abc", "found str"),
        (object(), "found object"),
        ({"picture": X, "labels": Y}, "found picture, labels"),
        ({"image": X}, "expected labels"),
        ((X, None), "expected labels"),
        ((X, Y[:2]), "2 labels for 3 images"),
        ((X[0], 4), "one label for 1 images"),
        (([PICTURE] * 3, Y), "ToTensor"),
        (([X[0], X[1], X[2]], Y), "default_collate"),
        ((X.numpy(), Y), "torch.as_tensor"),
        ((torch.tensor(1.0), Y), "first axis"),
        ({"pixel_values": X, "scale": torch.ones(2), "labels": Y}, "first axis"),
        ((X / 0, Y), r"NaN or infinity in its rows 0, 1, 2;"),
        ((torch.where(X == 5, torch.nan, X), Y), r"rows 1;"),
    ],
)
def test_refused(raw: object, message: str) -> None:
    with pytest.raises(DataError, match=f"loader, batch 0 .*{message}"):
        Reader("loader").read(raw)


def test_batches_of_several_forms_are_refused() -> None:
    reader = Reader("loader")
    reader.read((X, Y))
    with pytest.raises(DataError, match=r"batch 1 .*one form"):
        reader.read({"image": X, "label": Y})


def test_large_finite_numbers_are_finite() -> None:
    assert is_finite(torch.full((4,), 3e38))
    assert is_finite(torch.full((4,), 6e4, dtype=torch.float16))
    assert is_finite(torch.tensor([255], dtype=torch.uint8))
    assert not is_finite(torch.tensor([float("inf"), -float("inf")], dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (Y.to(torch.uint8), Y),
        (Y[:, None], Y),
        (Y.float(), Y),
        (np.array([0, 2, 1], dtype=np.int16), Y),
        (torch.tensor([[1, 0, 1]]), torch.tensor([[1.0, 0.0, 1.0]])),
        (torch.tensor([[True, False, True]]), torch.tensor([[1.0, 0.0, 1.0]])),
    ],
)
def test_labels(labels: object, expected: Tensor) -> None:
    found = normalised(labels, 3, "loader")
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.5, 1.0]), "whole numbers"),
        (torch.tensor([torch.nan]), "whole numbers"),
        (torch.tensor([1j]), "whole numbers"),
        (torch.tensor([[0.9, 0.1, 0.0]]), "0 and 1, found other values, for instance 0.9"),
        (torch.ones(2, 4), "soft labels"),
        (torch.tensor(1), "shape"),
        (["cat", "dog"], "map class names"),
        ([[1], [1, 2]], "holds something else"),
    ],
)
def test_labels_refused(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        normalised(labels, 3, "loader")
