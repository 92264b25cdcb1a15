from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetkit import kernel
from forgetkit.errors import BadHyperparameter, UnlearningFailed
from forgetkit.kernel import (
    Blocks,
    lower_kernel,
    removal_by_kernel,
    removal_by_products,
    removal_scale,
)
from forgetkit.per_sample import LogitsOf
from forgetkit.second_order import jacobian
from forgetkit.types import Batch, Inputs

Data = tuple[LogitsOf, dict[str, Tensor], Tensor, Tensor]


def as_function(model: nn.Module) -> tuple[LogitsOf, dict[str, Tensor]]:
    def logits_of(parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, dict(parameters), (inputs,))
        return logits

    return logits_of, {name: p.detach() for name, p in model.eval().named_parameters()}


def batches(inputs: Tensor) -> list[Batch]:
    labels = torch.zeros(len(inputs), dtype=torch.long)
    return [Batch(inputs[r], labels[r], r, len(r)) for r in torch.arange(len(inputs)).split(4)]


def linear() -> Data:
    logits_of, parameters = as_function(nn.Linear(5, 2, bias=False).double())
    inputs = torch.randn(20, 5, dtype=torch.float64)
    return logits_of, parameters, inputs, torch.randn(20, 2, dtype=torch.float64)


def test_linear_model_moves_to_the_fit_without_the_samples() -> None:
    logits_of, parameters, inputs, targets = linear()
    fitted = torch.linalg.lstsq(inputs, targets).solution.T.contiguous()
    refit = torch.linalg.lstsq(inputs[6:], targets[6:]).solution.T
    parameters = {"weight": fitted}
    wrong: Tensor = targets - inputs @ fitted.T
    for products in (True, False):
        residuals = (wrong[:6], wrong[6:])
        own, kept = batches(inputs[:6]), batches(inputs[6:])
        if products:
            delta = removal_by_products(
                logits_of, parameters, own, kept, residuals,
                penalty=1e-8, tolerance=1e-12, iterations=500,
            )[0]  # fmt: skip
        else:
            delta = removal_by_kernel(logits_of, parameters, own, kept, residuals, penalty=1e-8)[0]
        assert torch.allclose(fitted + delta.view(2, 5), refit, atol=1e-5)


@pytest.mark.parametrize(("columns", "tile"), [(3, 7), (1 << 16, 64)])
def test_ridge_is_exact_with_residuals_at_zero(
    columns: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "COLUMNS", columns)
    monkeypatch.setattr(kernel, "TILE", tile)
    logits_of, parameters, inputs, targets = linear()
    penalty = 0.3

    def ridge(rows: slice) -> Tensor:
        own = inputs[rows]
        matrix = own.T @ own + len(own) * penalty * torch.eye(5, dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(matrix, own.T @ targets[rows])
        return solved.T

    delta, kept = removal_by_kernel(
        logits_of, parameters, batches(inputs[:6]), batches(inputs[6:]),
        (targets[:6], targets[6:]), penalty=penalty,
    )  # fmt: skip
    everything = slice(0, 20)
    assert torch.allclose(kept.view(2, 5), ridge(slice(6, 20)), atol=1e-12)
    assert torch.allclose(delta.view(2, 5), ridge(slice(6, 20)) - ridge(everything), atol=1e-12)


@pytest.mark.slow
def test_both_solvers_agree_on_a_network() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    logits_of, parameters = as_function(model)
    inputs = torch.randn(15, 4, dtype=torch.float64)
    wrong = torch.randn(15, 3, dtype=torch.float64)
    own, kept, residuals = batches(inputs[:5]), batches(inputs[5:]), (wrong[:5], wrong[5:])
    slow = removal_by_kernel(logits_of, parameters, own, kept, residuals, penalty=1e-3)
    fast = removal_by_products(
        logits_of, parameters, own, kept, residuals, penalty=1e-3, tolerance=1e-12, iterations=500
    )
    assert all(solution.converged for solution in fast[2])
    assert torch.allclose(fast[0], slow[0], atol=1e-6)
    assert torch.allclose(fast[1], slow[1], atol=1e-6)
    rough = removal_by_products(
        logits_of, parameters, own, kept, residuals, penalty=1e-3, tolerance=1e-4, iterations=500
    )
    assert torch.allclose(rough[0], slow[0], atol=1e-2 * float(slow[0].norm()))


def test_nothing_to_forget_moves_nothing() -> None:
    logits_of, parameters, inputs, targets = linear()
    none = torch.zeros(0, 2, dtype=torch.float64)
    fast = removal_by_products(
        logits_of, parameters, [], batches(inputs), (none, targets), penalty=0.1
    )
    assert float(fast[0].abs().max()) == 0.0
    slow = removal_by_kernel(
        logits_of, parameters, [], batches(inputs), (none, targets), penalty=0.1
    )
    assert float(slow[0].abs().max()) == 0.0


def test_scale_follows_the_way_from_the_start() -> None:
    delta = torch.tensor([1.0, 0.0])
    assert removal_scale(delta, torch.tensor([1.0, 1.0])) == pytest.approx(3.0)
    assert removal_scale(delta, torch.tensor([-1.0, 1.0])) == pytest.approx(3.0)
    assert removal_scale(torch.zeros(2), torch.ones(2)) == 1.0


def test_a_kernel_beyond_the_budget_is_refused() -> None:
    logits_of, parameters, inputs, targets = linear()
    with pytest.raises(BadHyperparameter, match="solver='cg'"):
        removal_by_kernel(
            logits_of, parameters, [], batches(inputs), (targets[:0], targets),
            penalty=0.1, budget=1000,
        )  # fmt: skip


def test_the_budget_holds_three_kernels() -> None:
    logits_of, parameters, inputs, targets = linear()
    own, kept = batches(inputs[:6]), batches(inputs[6:])
    residuals = (targets[:6], targets[6:])
    needed = 3 * 40 * 40 * 8  # 20 samples, 2 classes

    def removed(budget: int) -> Tensor:
        return removal_by_kernel(
            logits_of, parameters, own, kept, residuals, penalty=0.1, budget=budget
        )[0]

    assert bool(torch.isfinite(removed(needed)).all())
    with pytest.raises(BadHyperparameter, match="pass solver='cg'"):
        removed(needed - 1)


@pytest.mark.parametrize("space", [1, 30 * 8 * 3, 30 * 8 * 11, 10**9])
def test_a_kernel_made_in_blocks_is_the_kernel(space: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "TILE", 8)
    logits_of, parameters = as_function(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)).double())
    inputs = torch.randn(10, 4, dtype=torch.float64)
    widths: list[int] = []
    empty = torch.empty

    def block(rows: int, width: int, **how: Any) -> Tensor:  # noqa: ANN401  as torch.empty has it
        widths.append(width)
        return empty(rows, width, **how)

    slopes = torch.cat(list(jacobian(logits_of, parameters, batches(inputs), classes=3)))
    monkeypatch.setattr(torch, "empty", block)
    found = lower_kernel(
        Blocks(logits_of, parameters, batches(inputs), rows=30, classes=3, space=space)
    )
    assert torch.allclose(found.tril(), (slopes @ slopes.T).tril(), atol=1e-12)
    assert sum(widths) == slopes.shape[1] == 19
    assert max(widths) == min(19, max(1, space // (30 * 8)))


@pytest.mark.parametrize(("kept", "times"), [(30 * 19 * 8, 1), (30 * 19 * 8 - 1, 2), (0, 2)])
def test_a_jacobian_stays_only_where_there_is_room(kept: int, times: int) -> None:
    logits_of, parameters = as_function(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)).double())
    read: list[int] = []

    class Watched(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            read.append(1)
            return super().__iter__()

    watched = Watched(batches(torch.randn(10, 4, dtype=torch.float64)))
    blocks = Blocks(logits_of, parameters, watched, rows=30, classes=3, space=10**6, kept=kept)
    first, second = torch.cat(list(blocks), dim=1), torch.cat(list(blocks), dim=1)
    assert torch.equal(first, second)
    assert len(read) == times


@pytest.mark.slow
def test_single_precision_is_multiplied_in_double() -> None:
    logits_of, parameters = as_function(nn.Linear(400, 2).float())
    inputs = 255.0 * torch.rand(6, 400)
    found = lower_kernel(
        Blocks(logits_of, parameters, batches(inputs), rows=12, classes=2, space=12 * 4)
    )
    slopes = torch.cat(list(jacobian(logits_of, parameters, batches(inputs), classes=2))).double()
    expected = slopes @ slopes.T
    assert torch.allclose(found.tril(), expected.tril(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("budget", [3 * 80 * 80 * 8, 2**30])
def test_a_small_penalty_keeps_its_digits_in_single_precision(budget: int) -> None:
    model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 4)).float()
    half = 255.0 * torch.rand(10, 30)
    inputs = torch.cat([half, half])  # the kernel of images that are there twice is singular
    wrong = torch.randn(20, 4, dtype=torch.float64)
    moves = []
    for precise in (False, True):
        logits_of, parameters = as_function(model.double() if precise else model)
        own = inputs.double() if precise else inputs
        moves.append(
            removal_by_kernel(
                logits_of, parameters, batches(own[:4]), batches(own[4:]), (wrong[:4], wrong[4:]),
                penalty=5e-4, budget=budget,
            )[0]
        )  # fmt: skip
    assert float((moves[0] - moves[1]).norm() / moves[1].norm()) < 1e-4


def test_half_precision_is_summed_beyond_its_range() -> None:
    logits_of, parameters = as_function(nn.Linear(4, 2).half())
    bright = batches(200.0 * torch.ones(3, 4).half())
    found = lower_kernel(Blocks(logits_of, parameters, bright, rows=6, classes=2, space=999))
    assert float(found[0, 0]) == 4 * 200.0**2 + 1.0


def test_the_block_leaves_room_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_of, parameters, inputs, targets = linear()
    spaces: list[tuple[int, int]] = []

    def watched(*given: Any, **how: Any) -> Blocks:  # noqa: ANN401  passed on as they come
        spaces.append((how["space"], how["kept"]))
        return Blocks(*given, **how)

    monkeypatch.setattr(kernel, "Blocks", watched)
    removal_by_kernel(
        logits_of, parameters, batches(inputs[:6]), batches(inputs[6:]),
        (targets[:6], targets[6:]), penalty=0.1, budget=100_000,
    )  # fmt: skip
    assert spaces == [(100_000 - 40 * 40 * 8, 100_000 - 3 * 40 * 40 * 8)]


def test_slopes_that_are_not_finite_are_told_from_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits_of, parameters, inputs, targets = linear()
    broken = torch.full((40, 40), float("nan"), dtype=torch.float64)
    monkeypatch.setattr(kernel, "lower_kernel", lambda blocks: broken)
    with pytest.raises(UnlearningFailed, match="finite derivatives"):
        removal_by_kernel(
            logits_of, parameters, batches(inputs[:6]), batches(inputs[6:]),
            (targets[:6], targets[6:]), penalty=0.1,
        )  # fmt: skip


def test_what_lies_above_the_diagonal_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_of, parameters, inputs, targets = linear()
    arguments = (
        logits_of, parameters, batches(inputs[:6]), batches(inputs[6:]), (targets[:6], targets[6:])
    )  # fmt: skip
    expected = removal_by_kernel(*arguments, penalty=0.1)
    whole = lower_kernel

    def spoilt(blocks: Blocks) -> Tensor:
        gram = whole(blocks)
        return gram.tril() + torch.full_like(gram, 1e6).triu(1)

    monkeypatch.setattr(kernel, "lower_kernel", spoilt)
    found = removal_by_kernel(*arguments, penalty=0.1)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_penalty_below_rounding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_of, parameters, inputs, targets = linear()
    whole = lower_kernel

    def rounded(blocks: Blocks) -> Tensor:
        return whole(blocks) - 0.5 * torch.eye(40, dtype=torch.float64)

    monkeypatch.setattr(kernel, "lower_kernel", rounded)
    with pytest.raises(UnlearningFailed, match="raise penalty"):
        removal_by_kernel(
            logits_of, parameters, batches(inputs[:6]), batches(inputs[6:]),
            (targets[:6], targets[6:]), penalty=1e-6,
        )  # fmt: skip
