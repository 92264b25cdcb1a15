from __future__ import annotations

import pytest
import torch
import toy_evidence as toys
from torch import Generator, Tensor

from forgetkit.auditing.evidence import Missing
from forgetkit.metrics.separability import Separability, nearest_mean, purity, silhouette


def test_silhouette_pinned() -> None:
    points = torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]], dtype=torch.float64)
    gone = torch.tensor([False, False, True, True])
    assert silhouette(points, gone) == pytest.approx(0.753789, abs=1e-6)
    assert silhouette(points, gone & False) is None


def drawn() -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(5)
    points = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    return points, torch.randint(4, (40,), generator=generator)


def test_nearest_mean_leaves_the_sample_out() -> None:
    points, labels = drawn()
    for row in range(len(points)):
        rest = torch.arange(len(points)) != row
        means = torch.stack([points[rest & (labels == c)].mean(dim=0) for c in range(4)])
        nearest = int((means - points[row]).norm(dim=1).argmin())
        assert bool(nearest_mean(points, labels)[row]) == (nearest == int(labels[row]))
    assert nearest_mean(points[:2], torch.tensor([0, 1])).tolist() == [0.0, 0.0]


def test_purity_written_out() -> None:
    points, labels = drawn()
    found = purity(points, labels, 5)
    for row in range(len(points)):
        order = (points - points[row]).norm(dim=1).argsort()
        near = [int(other) for other in order if int(other) != row][:5]
        share = sum(int(labels[other] == labels[row]) for other in near) / 5
        assert float(found[row]) == pytest.approx(share, abs=1e-12)


def test_a_head_edit_has_the_originals_features() -> None:
    found = Separability().measure(toys.evidence(roles=("original", "retrained", "untrained")))
    assert found.value == found.controls["original"]
    assert found.controls["untrained"] < found.controls["original"]
    silhouettes = found.details["silhouette"]
    assert isinstance(silhouettes, dict)
    assert silhouettes["unlearned"] == silhouettes["original"] > silhouettes["retrained"]


def test_few_samples_are_drawn_alike() -> None:
    found = Separability(samples=100).measure(toys.evidence(references=3))
    again = Separability(samples=100).measure(toys.evidence(references=3))
    assert found == again
    assert found.details["test_samples"] == 100
    assert found.verdict in ("as retrain", "residual")


def test_both_test_sets_are_needed() -> None:
    with pytest.raises(Missing, match="test samples of the other classes"):
        Separability().measure(toys.without(toys.evidence(), "test_retain"))
