from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forgetkit.projection import (
    Projection,
    Removal,
    core_rank,
    eigen,
    in_region,
    scaled_shares,
    weakest,
)

NotConverged: type[Exception] = getattr(torch.linalg, "LinAlgError")  # noqa: B009  not in stubs


def moment(rows: Tensor) -> Tensor:
    """Return the second moments of rows (rows, d) as one group."""
    return (rows.double().T @ rows.double())[None]


def literal_projection(rows: Tensor, share: float, spectrum: str) -> Tensor:
    """Return P = M M^T by the singular vectors of the rows themselves."""
    _, heights, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    heights = heights**2 if spectrum == "energy" else heights
    rank = 0
    while share > 0 and float(heights[:rank].sum()) < share * float(heights.sum()) - 1e-9:
        rank += 1
    basis = directions[:rank].T
    span: Tensor = basis @ basis.T
    return span


ROWS = torch.randn(200, 12, generator=torch.Generator().manual_seed(3)) @ torch.diag(
    torch.arange(12, 0, -1).float() ** 1.5
)


@pytest.mark.parametrize(
    ("share", "rank"), [(0.0, 0), (0.4, 1), (0.7, 2), (0.71, 3), (0.9, 3), (0.91, 4), (1.0, 4)]
)
def test_rank_by_the_papers_rule(share: float, rank: int) -> None:
    values = torch.tensor([[16.0, 9.0, 4.0, 1.0]], dtype=torch.float64)  # sigma = 4, 3, 2, 1
    assert core_rank(values, share, "sigma").tolist() == [rank]


def test_rank_by_energy_keeps_fewer_and_counts_each_group() -> None:
    values = torch.tensor([[16.0, 9, 4, 1], [30, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert core_rank(values, 0.83, "energy").tolist() == [2, 1, 0]
    assert core_rank(values, 0.84, "energy").tolist() == [3, 1, 0]
    assert core_rank(values, 1.0, "energy").tolist() == [4, 1, 0]
    slow = (torch.arange(1, 577, dtype=torch.float64) ** -1.5)[None]
    assert core_rank(slow, 0.9, "sigma").item() == 409
    assert core_rank(slow, 0.9, "energy").item() == 35


@pytest.mark.parametrize("spectrum", ["energy", "sigma"])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.95, 0.999])
def test_projection_is_the_literal_one(share: float, spectrum: str) -> None:
    found = eigen(moment(ROWS))
    ranks = core_rank(found.values, share, spectrum)
    away = Projection.away_from(found, ranks)
    expected = torch.eye(12, dtype=torch.float64) - literal_projection(ROWS, share, spectrum)
    gradient = torch.randn(5, 12, dtype=torch.float64)
    assert torch.allclose(away.of(gradient), gradient @ expected, atol=1e-9)
    matrix = away.of(torch.eye(12, dtype=torch.float64))
    inside = torch.eye(12, dtype=torch.float64) - matrix
    assert torch.allclose(inside, inside.T, atol=1e-6)
    assert torch.allclose(inside @ inside, inside, atol=1e-6)
    assert float(inside.trace()) == pytest.approx(int(ranks))
    basis = found.vectors[0, :, : int(ranks)].float()
    single = torch.randn(7, 3, 2, 2)
    projected = Projection(away.basis.float(), away.keeps).of(single)
    assert projected.shape == single.shape
    assert float((projected.reshape(7, 12) @ basis).norm()) <= 1e-5 * float(single.norm())
    assert away.keeps == (int(ranks) > 6)  # the cheaper form


def test_each_group_is_projected_by_its_own_directions() -> None:
    one, other = ROWS @ torch.randn(12, 12), ROWS
    found = eigen(torch.cat([moment(one), moment(other)]))
    for share in (0.5, 0.99):
        ranks = core_rank(found.values, share)
        gradient = torch.randn(6, 12, dtype=torch.float64)
        expected = [
            part @ (torch.eye(12, dtype=torch.float64) - literal_projection(rows, share, "energy"))
            for part, rows in zip(gradient.chunk(2), (one, other), strict=True)
        ]
        away = Projection.away_from(found, ranks)
        assert torch.allclose(away.of(gradient), torch.cat(expected), atol=1e-8)


def test_nothing_and_everything() -> None:
    found = eigen(moment(ROWS))
    gradient = torch.randn(3, 12)
    nothing = Projection.away_from(found, torch.tensor([0]))
    assert torch.equal(nothing.of(gradient), gradient)
    everything = Projection.away_from(found, torch.tensor([12]))
    assert float(everything.of(gradient).abs().max()) == 0.0


def test_noise_and_negative_eigenvalues_count_as_zero() -> None:
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    values = torch.tensor([10.0, 1.0, 1e-13, -0.5], dtype=torch.float64)
    found = eigen(((basis * values) @ basis.T)[None])
    assert torch.allclose(found.values, values.new_tensor([[10.0, 1.0, 0.0, 0.0]]), atol=1e-9)
    assert found.values[0, 2:].tolist() == [0.0, 0.0]
    assert found.negative == pytest.approx(0.5 / 11.0)
    assert eigen(moment(ROWS)).negative == 0.0
    assert core_rank(eigen(torch.zeros(1, 4, 4)).values, 0.9).tolist() == [0]


def test_trust_region_is_the_literal_one_and_starts_as_the_weight() -> None:
    found = eigen(moment(ROWS))
    whole = weakest(found, 5, 400)
    assert whole.shape == (12, 5)
    part = weakest(found, 5, 2)
    assert torch.equal(part, whole[:, 3:])
    weight, scaling = torch.randn(4, 12, dtype=torch.float64), torch.randn(5, 5).double()
    assert torch.allclose(in_region(weight, whole, torch.eye(5).double()), weight, atol=1e-6)
    outside = torch.eye(12, dtype=torch.float64) - whole @ whole.T
    expected = weight @ outside + weight @ whole @ scaling @ whole.T
    assert torch.allclose(in_region(weight, whole, scaling), expected, atol=1e-9)
    features = torch.randn(7, 12, dtype=torch.float64)
    seen = features - features @ whole @ whole.T + features @ whole @ scaling.T @ whole.T
    folded = features @ in_region(weight, whole, scaling).T
    assert torch.allclose(seen @ weight.T, folded, atol=1e-9)


def literal_removal(
    weight: Tensor, retained: Tensor, forgotten: Tensor, scales: tuple[float, float]
) -> Tensor:
    """Return W P^T from the singular vectors of the inputs (rows, d)."""
    spans = []
    for rows, scale in zip((retained, forgotten), scales, strict=True):
        _, heights, directions = torch.linalg.svd(rows.double(), full_matrices=False)
        share = heights**2 / (heights**2).sum()
        factor = scale * share / ((scale - 1) * share + 1)
        spans.append(directions.T @ torch.diag(factor) @ directions)
    kept, gone = spans
    matrix = torch.eye(len(kept), dtype=torch.float64) - (gone - gone @ kept)
    found: Tensor = weight.double() @ matrix.T
    return found


def test_removal_pinned() -> None:
    retained = torch.diag(torch.tensor([2.0, 1.0]))
    forgotten = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    values = eigen(moment(retained)).values
    expected = torch.tensor([[0.997506, 0.961538]], dtype=torch.float64)
    assert torch.allclose(scaled_shares(values, 100.0), expected, atol=1e-6)
    removal = Removal(torch.eye(2), eigen(moment(retained)), eigen(moment(forgotten)))
    found = removal.edited(100.0, 3.0)
    assert torch.allclose(found, torch.diag(torch.tensor([1.0, 0.961538])), atol=1e-6)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (100.0, 3.0), (30.0, 1000.0), (0.25, 0.5)])
def test_removal_is_the_literal_one(scales: tuple[float, float]) -> None:
    retained, forgotten = ROWS, torch.randn(50, 12) @ torch.randn(12, 12)
    weight = torch.randn(4, 12)
    removal = Removal(weight, eigen(moment(retained)), eigen(moment(forgotten)))
    expected = literal_removal(weight, retained, forgotten, scales)
    assert torch.allclose(removal.edited(*scales).double(), expected, atol=1e-5)
    kernel = weight.reshape(4, 3, 2, 2)
    removal = Removal(kernel, eigen(moment(retained)), eigen(moment(forgotten)))
    assert torch.allclose(removal.edited(*scales).reshape(4, 12).double(), expected, atol=1e-5)


def test_removal_treats_each_group_for_itself() -> None:
    sets = [torch.randn(40, 12) @ torch.randn(12, 12) for _ in range(4)]
    weight = torch.randn(6, 12)
    retain = eigen(torch.cat([moment(sets[0]), moment(sets[1])]))
    forget = eigen(torch.cat([moment(sets[2]), moment(sets[3])]))
    found = Removal(weight, retain, forget).edited(10.0, 30.0).double()
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        expected = literal_removal(weight[rows], sets[group], sets[group + 2], (10.0, 30.0))
        assert torch.allclose(found[rows], expected, atol=1e-5)


def test_removal_leaves_out_directions_without_use_and_goes_through_scales_in_any_order() -> None:
    few = [torch.randn(count, 12) for count in (3, 5)]  # so that most of 12 directions are unused
    weight = torch.randn(4, 12)
    removal = Removal(weight, eigen(moment(few[0])), eigen(moment(few[1])))
    for scales in ((10.0, 3.0), (10.0, 30.0), (300.0, 30.0), (10.0, 30.0), (300.0, 3.0)):
        expected = literal_removal(weight, few[0], few[1], scales)
        assert torch.allclose(removal.edited(*scales).double(), expected, atol=1e-5)
    unused = Removal(weight, eigen(moment(few[0])), eigen(torch.zeros(1, 12, 12)))
    assert torch.equal(unused.edited(10.0, 30.0), weight)
    found = eigen(moment(few[1]))
    gone = found.vectors[0] * scaled_shares(found.values, 30.0) @ found.vectors[0].T
    only = Removal(weight, eigen(torch.zeros(1, 12, 12)), found)
    assert torch.allclose(
        only.edited(10.0, 30.0).double(), weight.double() @ (torch.eye(12) - gone), atol=1e-5
    )


def test_orthogonal_sets_are_told_apart_completely() -> None:
    axes = torch.linalg.qr(torch.randn(6, 6)).Q
    retained, forgotten = torch.randn(30, 3) @ axes[:3], torch.randn(30, 3) @ axes[3:]
    weight = torch.randn(4, 6)
    edited = Removal(weight, eigen(moment(retained)), eigen(moment(forgotten))).edited(1e12, 1e12)
    assert torch.allclose(forgotten @ edited.T, torch.zeros(30, 4), atol=1e-4)
    assert torch.allclose(retained @ edited.T, retained @ weight.T, atol=1e-4)


def test_equal_sets_change_nothing() -> None:
    weight, found = torch.randn(4, 12), eigen(moment(ROWS))
    assert torch.allclose(Removal(weight, found, found).edited(1e15, 30.0), weight, atol=1e-5)


@pytest.mark.parametrize("negative", [False, True])
def test_columns_of_zeros_are_directions_of_their_own(negative: bool) -> None:
    rows = torch.randn(2, 30, 9, dtype=torch.float64)
    rows[:, :, [0, 3, 8]] = 0.0
    rows[1, :, 5] = 0.0  # of one group only
    rows[0, :, 6] = 0.0
    moment = rows.transpose(1, 2) @ rows
    if negative:
        moment[:, 4, 4] -= 100.0
    found = eigen(moment)
    known = torch.linalg.eigvalsh(moment).flip(-1)
    assert torch.allclose(found.values, known.clamp(min=0), atol=1e-9)
    assert found.negative == pytest.approx(float(-known.clamp(max=0).sum() / found.values.sum()))
    assert (found.negative > 0.1) == negative
    unit = found.vectors.transpose(1, 2) @ found.vectors
    assert torch.allclose(unit, torch.eye(9, dtype=torch.float64).expand(2, 9, 9), atol=1e-12)
    product = found.vectors.transpose(1, 2) @ moment @ found.vectors
    assert torch.allclose(product, torch.diag_embed(known), atol=1e-9)


def test_where_one_algorithm_does_not_converge_another_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(2, 5, 40, dtype=torch.float64)  # 35 of 40 eigenvalues are 0
    moment = rows.transpose(1, 2) @ rows
    wanted = eigen(moment)

    def never(_: Tensor) -> None:
        raise NotConverged("linalg.eigh: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", never)
    found = eigen(moment)
    assert torch.allclose(found.values, wanted.values, atol=1e-10)
    assert int((found.values > 0).sum()) == 10
    own, others = (one.vectors[..., :5] for one in (found, wanted))
    assert torch.allclose(own @ own.transpose(1, 2), others @ others.transpose(1, 2), atol=1e-9)
    with pytest.raises(NotConverged):
        eigen(torch.full((1, 4, 4), torch.nan))


@pytest.mark.parametrize(("share", "rank"), [(0.07, 7), (0.07 + 1e-11, 8), (0.07 - 1e-11, 7)])
def test_a_share_that_is_reached_but_for_rounding_is_reached(share: float, rank: int) -> None:
    values = torch.ones(1, 100, dtype=torch.float64)
    assert 0.07 * 100 > 7  # by one rounding
    assert core_rank(values, share).tolist() == [rank]
