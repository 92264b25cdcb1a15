from __future__ import annotations

from collections.abc import Sized

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.errors import BadHyperparameter, ForgetkitError
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights

START = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
INPUTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7], [2.0, 1.0], [0.1, 0.2]])
LABELS = torch.tensor([0, 1, 2, 0, 1])


class Linear(nn.Module):
    """Two inputs, three classes, nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(START)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs)
        return logits


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3)


def linearised(rows: Tensor, penalty: float) -> Tensor:
    """Return w(S) for the linear model by its primal normal equations, (3, 2)."""
    own = INPUTS[rows]
    residual = torch.eye(3)[LABELS[rows]] - (own @ START.T).softmax(dim=1)
    matrix = own.T @ own + len(rows) * penalty * torch.eye(2)
    solved: Tensor = torch.linalg.solve(matrix, own.T @ residual)
    return solved.T


def moved(**settings: float | str | None) -> Tensor:
    model = Linear()
    request = forget(model).instances([0, 3]).fresh({"fc.weight": START - 1.0})
    chosen = {"scale": 1.0, "penalty": 0.05, "tolerance": 1e-9, **settings}
    request.using("ntk", **chosen).on("cpu").run(loader(), guard=None)
    return model.fc.weight.detach() - START


def test_run_equals_the_primal_solution() -> None:
    kept, everything = torch.tensor([1, 2, 4]), torch.arange(5)
    expected = linearised(kept, 0.05) - linearised(everything, 0.05)
    assert torch.allclose(moved(solver="cg"), expected, atol=1e-5)
    assert torch.allclose(moved(solver="cholesky"), expected, atol=1e-5)
    assert torch.allclose(moved(scale=2.5), 2.5 * expected, atol=1e-5)


def test_scale_from_the_initial_weights() -> None:
    kept, everything = torch.tensor([1, 2, 4]), torch.arange(5)
    weights_kept = linearised(kept, 0.05)
    delta = weights_kept - linearised(everything, 0.05)
    error = torch.ones(3, 2) - weights_kept  # the weights came from START - 1
    cosine = (delta * error).sum() / (delta.norm() * error.norm())
    if cosine >= 0:
        scale = 1 + 2 * cosine * error.norm() / delta.norm()
    else:
        scale = 1 + 2 * torch.sin(torch.arccos(cosine) - torch.pi / 2) * error.norm() / delta.norm()
    assert float(scale) > 1.01
    assert torch.allclose(moved(scale=None), scale * delta, atol=1e-4)


def test_a_kernel_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetkit.kernel.BUDGET", 1)
    model = Linear()
    start = weights(model)
    request = forget(model).instances([0]).using("ntk", solver="cholesky").on("cpu")
    with pytest.raises(BadHyperparameter, match="solver='cg'"):
        request.run(loader(), guard=None)
    assert changed(start, weights(model)) == []


def test_noise_comes_on_top() -> None:
    plain, noisy = moved(), moved(noise=1e-4)
    assert 0.0 < float((plain - noisy).abs().max()) < 2.0


def test_noise_is_capped_and_shared_by_the_inputs_of_an_output() -> None:
    inputs = INPUTS.clone()
    inputs[:, 1] = 0.0  # weights that matter to nothing: only the cap bounds their noise
    ends = []
    for strength in (0.0, 1e-4):
        model = Linear()
        request = forget(model).seed(5).instances([0]).using("ntk", noise=strength).on("cpu")
        request.run(DataLoader(TensorDataset(inputs, LABELS), batch_size=3), guard=None)
        ends.append(model.fc.weight.detach())
    drawn = torch.randn(3, 2, generator=torch.Generator().manual_seed(5))
    variance = ((ends[1] - ends[0]) / drawn) ** 2
    assert torch.allclose(variance[:, 0], variance[:, 1], rtol=1e-3)
    # half of 1e-4 * 1000, and half of 1e-4 / F for the input that matters
    assert float(variance.min()) > 0.05
    assert float(variance.max()) < 0.0525


def test_one_retained_sample_is_enough_but_none_is_refused() -> None:
    assert float(moved(retain_samples=1).abs().max()) > 0.0
    with pytest.raises(ForgetkitError, match="retain"):
        forget(Linear()).instances(range(5)).using("ntk").on("cpu").run(loader(), guard=None)


def test_the_kernel_is_used_where_it_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(**settings: float | str) -> str:
        request = forget(Linear()).instances([0, 3]).using("ntk", scale=1.0, **settings)
        return " ".join(request.on("cpu").run(loader(), guard=None).notes)

    assert "solver='cholesky' for 15 rows" in notes()
    assert "products" not in notes()
    monkeypatch.setattr("forgetkit.kernel.PRODUCTS", 15 * 15 * 6 / 2 - 1)
    assert "solver='cg' for 15 rows" in notes()
    assert "converged after" in notes()
    assert "ended before they had solved" not in notes()
    assert "ended before they had solved" in notes(iterations=1)
    # D_r alone is solved for, D is not
    assert "ended before they had solved" in notes(
        iterations=2, penalty=0.05, retain_samples=1, solver="cg"
    )
    assert "solver=" not in notes(solver="cholesky").split("for 15 rows")[0]
    monkeypatch.setattr("forgetkit.kernel.PRODUCTS", 15 * 15 * 6 / 2)
    assert "solver='cholesky'" in notes()
    monkeypatch.setattr("forgetkit.kernel.BUDGET", 3 * 15 * 15 * 8 - 1)
    assert "solver='cg'" in notes()


def test_the_search_measures_the_samples_that_were_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def watched(run: object, move: object, kept: Sized) -> float:
        sizes.append(len(kept))
        return 1.0

    monkeypatch.setattr("forgetkit.methods.ntk.searched_scale", watched)
    request = forget(Linear()).instances([0]).using("ntk", retain_samples=2).on("cpu")
    request.run(loader(), guard=None)
    assert sizes == [2]


@pytest.mark.parametrize("fresh", [None, "factory"])
def test_without_the_first_weights_the_scale_is_searched(fresh: str | None) -> None:
    some = toy("cnn")
    request = forget(some.model).classes([1])
    if fresh:
        request = request.fresh(lambda: toy("cnn").model)
    request = request.using("ntk", retain_samples=60, penalty=20.0).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert any("is nearest to a forget accuracy of 0.00 %" in note for note in result.notes)
    assert result.after["forget"].accuracy <= 0.1
    images, labels = some.test.tensors
    right = some.model(images).argmax(dim=1) == labels
    assert float(right[labels != 1].float().mean()) >= 0.8
