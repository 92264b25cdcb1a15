from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from forgetkit.distillation import bounded_departure, distillation, divergences
from forgetkit.noise import error_maximising_noise


def literal(teacher: Tensor, student: Tensor, temperature: float) -> float:
    """Add up T^2 sum_k t_k log(t_k / s_k) term by term, mean over samples."""
    total = 0.0
    for t_row, s_row in zip(teacher.tolist(), student.tolist(), strict=True):
        t = [math.exp(z / temperature) for z in t_row]
        s = [math.exp(z / temperature) for z in s_row]
        t, s = [a / sum(t) for a in t], [a / sum(s) for a in s]
        total += sum(a * math.log(a / b) for a, b in zip(t, s, strict=True))
    return temperature**2 * total / len(teacher)


@pytest.mark.parametrize(("temperature", "expected"), [(1, 1.150421), (2, 1.280627), (4, 1.319630)])
def test_distillation_pinned(temperature: float, expected: float) -> None:
    student, teacher = torch.tensor([[2.0, 1, 0]]), torch.tensor([[0.0, 1, 2]])
    assert float(distillation(teacher, student, temperature)) == pytest.approx(expected, abs=1e-6)
    assert float(bounded_departure(teacher, student, temperature)[0]) == pytest.approx(
        -expected, abs=1e-6
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation_equals_the_sum_written_out(temperature: float) -> None:
    teacher, student = torch.randn(6, 5), torch.randn(6, 5)
    found = float(distillation(teacher, student, temperature))
    assert found == pytest.approx(literal(teacher, student, temperature), rel=1e-4)
    each = divergences(teacher, student, temperature)
    assert each.shape == (6,)
    assert float(each[2]) * temperature**2 == pytest.approx(
        literal(teacher[2:3], student[2:3], temperature), rel=1e-4
    )


def test_equal_logits_have_no_distance_and_no_gradient() -> None:
    student = torch.randn(4, 3, requires_grad=True)
    distillation(student.detach(), student, 4.0).backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_departure_ignores_samples_beyond_the_cap() -> None:
    teacher = torch.tensor([[1.0, 0, 0], [40.0, 0, 0]])
    student = torch.tensor([[0.0, 1, 0], [-40.0, 0, 0]], requires_grad=True)
    loss, beyond = bounded_departure(teacher, student, 1.0)
    assert beyond == 1
    loss.backward()
    assert student.grad is not None
    assert float(student.grad[0].abs().max()) > 0.01
    assert float(student.grad[1].abs().max()) == 0.0
    assert float(loss.detach()) == pytest.approx(
        -literal(teacher[:1], student[:1].detach(), 1.0) / 2
    )


def test_noise_follows_adam_written_out() -> None:
    weight = torch.randn(3, 4)
    start = torch.randn(5, 4)
    found = error_maximising_noise(
        start, 1, lambda inputs: inputs @ weight.T, energy_weight=0.1, lr=0.05, steps=3
    )
    moved, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in (1, 2, 3):
        errors = (moved @ weight.T).softmax(dim=1) - torch.eye(3)[[1] * 5]
        gradient = (2 * 0.1 * moved - errors @ weight) / 5
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moved = moved - 0.05 * (first / (1 - 0.9**step)) / (
            (second / (1 - 0.999**step)).sqrt() + 1e-8
        )
    assert torch.allclose(found, moved, atol=1e-5)


def test_noise_leaves_start_and_parameters_alone() -> None:
    model = torch.nn.Linear(4, 3)
    start = torch.zeros(2, 4)
    found = error_maximising_noise(start, 0, model, energy_weight=0.1, lr=0.1, steps=2)
    assert float(start.abs().max()) == 0.0
    assert float(found.abs().max()) > 0.0
    assert model.weight.grad is None


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_departure_is_capped_at_twice_log_k_plus_five(temperature: float) -> None:
    cap = 2 * math.log(3) + 5  # 7.197 nats for three classes
    # KL from a sure teacher is -log p_0; with logits (a, 0, 0) that is log(1 + 2 exp(-a))
    far = [cap - 0.01, cap + 0.01]
    softened = torch.tensor([[-math.log((math.exp(d) - 1) / 2), 0, 0] for d in far])
    teacher = torch.tensor([[400.0, 0, 0]] * 2)
    loss, beyond = bounded_departure(teacher, temperature * softened, temperature)
    assert beyond == 1
    assert float(loss) == pytest.approx(-(temperature**2) * (cap - 0.01) / 2, rel=1e-4)
