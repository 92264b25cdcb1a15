"""The ranking of weights by gradient: exact size, ties by position, one ranking for all tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from forgetkit.errors import UnlearningFailed
from forgetkit.saliency import kept_count, saliency_masks


def literal(gradients: dict[str, Tensor], share: float) -> dict[str, list[bool]]:
    """Sort a plain list of (size, place) and tick the first ones."""
    flat = [
        (-abs(float(value)), place)
        for place, value in enumerate(v for g in gradients.values() for v in g.reshape(-1))
    ]
    chosen = {place for _, place in sorted(flat)[: kept_count(share, len(flat))]}
    ticked, start = {}, 0
    for name, gradient in gradients.items():
        ticked[name] = [start + i in chosen for i in range(gradient.numel())]
        start += gradient.numel()
    return ticked


def some_gradients(levels: int | None) -> dict[str, Tensor]:
    generator = Generator().manual_seed(3)
    shapes = {"a": (4, 3), "b": (5,), "empty": (0, 2), "c": (2, 2, 3), "one": ()}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if levels is None:
        return made
    return {name: (g * levels).round() / levels for name, g in made.items()}


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.33, 0.5, 0.9, 0.999, 1.0])
def test_equals_a_sorted_list(share: float, levels: int | None) -> None:
    gradients = some_gradients(levels)
    masks = saliency_masks(gradients, share)
    assert list(masks) == list(gradients)
    expected = literal(gradients, share)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == gradients[name].shape
        assert mask.reshape(-1).tolist() == expected[name]
    assert sum(int(m.sum()) for m in masks.values()) == math.ceil(share * 30)


def test_ranks_all_tensors_together_by_absolute_value() -> None:
    masks = saliency_masks({"a": torch.tensor([0.1, -5.0]), "b": torch.tensor([3.0, 0.2])}, 0.5)
    assert masks["a"].tolist() == [False, True]
    assert masks["b"].tolist() == [True, False]


def test_ties_go_to_the_first_positions() -> None:
    masks = saliency_masks({"a": torch.ones(3), "b": torch.ones(3)}, 2 / 3)
    assert masks["a"].tolist() == [True, True, True]
    assert masks["b"].tolist() == [True, False, False]


def test_count_takes_the_share_as_written() -> None:
    assert kept_count(0.07, 100) == 7
    assert math.ceil(0.07 * 100) == 8
    assert kept_count(1e-05, 100000) == 1
    assert kept_count(0.5, 7) == 4


def test_is_the_same_in_half_precision_and_needs_no_graph() -> None:
    gradients = {"a": torch.tensor([1.0, -2.0, 0.5, 4.0], requires_grad=True)}
    half = {"a": gradients["a"].detach().bfloat16()}
    wide, narrow = saliency_masks(gradients, 0.5)["a"], saliency_masks(half, 0.5)["a"]
    assert wide.tolist() == narrow.tolist() == [False, True, False, True]


def test_refuses_gradients_that_are_not_finite() -> None:
    with pytest.raises(UnlearningFailed, match="found NaN or infinity in b"):
        saliency_masks({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}, 0.5)
