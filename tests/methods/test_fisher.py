from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.draws import uniform
from forgetkit.fisher_noise import noise, noise_variance
from forgetkit.method import build
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights


class Linear(nn.Module):
    """Two inputs, three classes, nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
            self.fc.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs)
        return logits


INPUTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7], [2.0, 1.0]])
LABELS = torch.tensor([0, 1, 2, 0])


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3)


def test_noise_is_large_where_the_information_is_small() -> None:
    found = noise_variance(torch.tensor([1e-2, 1.0, 1e2]), 1e-6).sqrt()
    assert torch.allclose(found, torch.tensor([1e-2, 1e-3, 1e-4]), rtol=1e-4)
    paper = noise_variance(torch.tensor([1e-2, 1.0, 1e2]), 1e-4, exponent=0.25).sqrt()
    assert torch.allclose(paper, torch.tensor([10.0**-0.5, 0.1, 10.0**-1.5]), rtol=1e-4)


def test_cap_and_average() -> None:
    fisher = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    capped = noise_variance(fisher, 1e-3, cap=10.0)
    assert torch.allclose(capped, torch.tensor([[1e-2, 1e-3], [2e-3, 4e-3]]), rtol=1e-4)
    shared = noise_variance(fisher, 1e-3, cap=10.0, averaged=True)
    assert torch.allclose(shared, torch.tensor([[5.5e-3] * 2, [3e-3] * 2]), rtol=1e-4)
    places = torch.tensor([[[[1.0, 0.5]], [[0.25, 0.5]]]])  # one unit, two channels, 1 x 2
    kernel = noise_variance(places, 1e-3, averaged=True)
    assert torch.allclose(kernel, torch.tensor([[[[2.5e-3, 2e-3]]]]).expand(1, 2, 1, 2), rtol=1e-4)
    one = noise_variance(torch.tensor([0.5]), 1e-3, averaged=True)
    assert torch.allclose(one, torch.tensor([2e-3]), rtol=1e-4)


def test_noise_has_its_variance() -> None:
    drawn = noise(torch.full((1000,), 0.04), Generator().manual_seed(0))
    assert float(drawn.var()) == pytest.approx(0.04, rel=0.1)
    assert abs(float(drawn.mean())) < 0.02


@pytest.mark.parametrize("labels", ["expected", "sampled"])
def test_run_equals_a_literal_computation(labels: str) -> None:
    model = Linear()
    start = weights(model)
    kept = LABELS != 2
    fisher = {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}
    draws = uniform(9, "fisher: labels", kept.nonzero()[:, 0]).tolist()
    drawn_labels = []
    for inputs, draw in zip(INPUTS[kept], draws, strict=True):
        probs = model(inputs[None]).softmax(dim=1)[0].detach()
        shares = probs
        if labels == "sampled":
            ends = [float(probs[: label + 1].sum()) for label in range(3)]
            drawn_labels.append(next(label for label in range(3) if draw < ends[label]))
            shares = torch.eye(3)[drawn_labels[-1]]
        for label in range(3):
            error = probs - torch.eye(3)[label]  # gradient of -log p_y by the logits
            fisher["fc.bias"] += shares[label] * error**2 / 3
            fisher["fc.weight"] += shares[label] * torch.outer(error, inputs) ** 2 / 3
    assert drawn_labels == ([2, 1, 0] if labels == "sampled" else [])
    expected = {}
    generator = Generator().manual_seed(9)
    for name, own in fisher.items():
        variance = 1e-3 * (1 / (own + 1e-8)).clamp(max=0.1 * 30.0)
        if own.ndim > 1:
            variance = variance.mean(dim=1, keepdim=True).expand(3, 2).clone()
        mean, variance = start[name].clone(), variance * 7.0
        mean[2], variance[2] = 0.0, 1e-4
        drawn = torch.randn(own.shape, generator=generator)
        expected[name] = mean + variance.sqrt() * drawn
    request = forget(model).seed(9).classes([2]).on("cpu")
    request = request.using("fisher", strength=1e-3, cap=30.0, factor=7.0, labels=labels)
    request.run(loader(), guard=None)
    for name, value in expected.items():
        assert torch.allclose(weights(model)[name], value, atol=1e-6), name


class Hidden(nn.Module):
    """A layer before the head: two inputs, four features, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(inputs).tanh())
        return logits


def test_outside_the_head_the_cap_is_whole_and_the_factor_is_for_single_dimensions() -> None:
    model = Hidden()
    start = weights(model)
    fisher = {name: torch.zeros_like(value) for name, value in start.items()}
    for inputs in INPUTS[LABELS != 2]:
        logs = model(inputs[None]).log_softmax(dim=1)[0]
        for log in logs:
            found = torch.autograd.grad(log, list(model.parameters()), retain_graph=True)
            for name, gradient in zip(fisher, found, strict=True):
                fisher[name] += log.exp().detach() * gradient**2 / 3
    inverse = 1 / (fisher["body.weight"] + 1e-8)
    assert 5.0 < float(inverse.min()) < 50.0 < float(inverse.max())
    generator = Generator().manual_seed(5)
    expected = {}
    for name, factor, cap in (
        ("body.weight", 1.0, 50.0),
        ("body.bias", 7.0, 50.0),
        ("fc.weight", 7.0, 5.0),
        ("fc.bias", 7.0, 5.0),
    ):
        own = fisher[name]
        variance = factor * 1e-4 * (1 / (own + 1e-8)).clamp(max=cap)
        if own.ndim > 1:
            variance = variance.mean(dim=1, keepdim=True).expand(own.shape)
        drawn = torch.randn(own.shape, generator=generator)
        expected[name] = start[name] + variance.sqrt() * drawn
    request = forget(model).seed(5).classes([2])
    request = request.using("fisher", strength=1e-4, cap=50.0, factor=7.0, new_rows=False)
    request.on("cpu").run(loader(), guard=None)
    for name, value in expected.items():
        assert torch.allclose(weights(model)[name], value, atol=1e-5), name


def test_no_noise_changes_the_new_rows_only() -> None:
    for goal in ("classes", "instances"):
        model = Linear()
        start = weights(model)
        request = forget(model).seed(0)
        request = request.classes([2]) if goal == "classes" else request.instances([0])
        request.using("fisher", strength=0.0).on("cpu").run(loader(), guard=None)
        after = weights(model)
        assert torch.equal(after["fc.weight"][:2], start["fc.weight"][:2])
        if goal == "classes":
            assert float(after["fc.weight"][2].abs().max()) < 0.05
            assert not torch.equal(after["fc.bias"][2], start["fc.bias"][2])
        else:
            assert changed(start, after) == []


def test_same_seed_same_noise() -> None:
    outcomes = []
    for seed in (1, 1, 2):
        model = Linear()
        forget(model).seed(seed).classes([2]).using("fisher", labels="sampled").on("cpu").run(
            loader(), guard=None
        )
        outcomes.append(weights(model))
    assert changed(outcomes[0], outcomes[1]) == []
    assert changed(outcomes[0], outcomes[2]) != []


def test_paper_preset_is_the_plain_form() -> None:
    paper = build("fisher", {"preset": "paper", "strength": 1e-3}).hyperparameters()
    assert (paper["exponent"], paper["cap"], paper["averaged"]) == (0.25, None, False)
    assert (paper["factor"], paper["new_rows"], paper["strength"]) == (1.0, False, 1e-3)


def test_statistics_of_normalisation_stay() -> None:
    some = toy("cnn")
    start = weights(some.model)
    forget(some.model).classes([3]).using("fisher", labels="sampled").on("cpu").run(
        some.loader(), guard=None
    )
    moved = changed(start, weights(some.model))
    assert moved
    assert not [name for name in moved if "running" in name or "num_batches" in name]


def test_a_run_is_not_taken_for_a_masked_head() -> None:
    some = toy("cnn")
    request = forget(some.model).instances([0, 3, 7]).using("fisher", strength=1e-9)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert not result.head_masked
    assert result.after["forget"].accuracy == result.before["forget"].accuracy


def test_weights_without_information_get_the_published_floor() -> None:
    found = noise_variance(torch.zeros(2), 3.0, exponent=0.5)
    assert torch.allclose(found, torch.full((2,), 3e8))
