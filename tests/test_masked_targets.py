from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from forgetkit.losses import bounded_ascent, membership
from forgetkit.masked_targets import (
    adjusted_probabilities,
    current_divergence,
    entropy,
    in_layers,
    likeness,
    log_rest,
    masked_softmax,
    target_divergence,
)


def some(seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(9, 5, generator=generator)
    return logits, torch.randint(0, 5, (9,), generator=generator)


def literal_target(row: list[float], gone: set[int], epsilon: float, t: float) -> list[float]:
    powers = [math.exp((value - max(row)) / t) for value in row]
    inside = sum(power for k, power in enumerate(powers) if k in gone)
    outside = sum(power for k, power in enumerate(powers) if k not in gone)
    return [
        epsilon * power / inside if k in gone else (1 - epsilon) * power / outside
        for k, power in enumerate(powers)
    ]


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_targets_are_the_literal_ones(epsilon: float, t: float) -> None:
    logits, labels = some(0)
    blocked = membership(labels, 5)
    blocked[:, 2] = True
    ours = adjusted_probabilities(logits, blocked, epsilon=epsilon, temperature=t)
    for row, label, found in zip(logits, labels, ours, strict=True):
        gone = {int(label), 2}
        literal = literal_target(row.tolist(), gone, epsilon, t)
        assert found.tolist() == pytest.approx(literal, rel=1e-5, abs=1e-8)
    assert torch.allclose(ours.sum(dim=1), torch.ones(9), atol=1e-6)
    assert torch.allclose((ours * blocked).sum(dim=1), torch.full((9,), epsilon), atol=1e-7)


def test_the_others_keep_their_odds_and_the_label_gets_epsilon() -> None:
    logits, labels = some(1)
    probs = logits.softmax(dim=1)
    target = adjusted_probabilities(logits, membership(labels, 5), epsilon=0.05)
    for p, q, y in zip(probs, target, labels.tolist(), strict=True):
        others = [k for k in range(5) if k != y]
        odds = [float(q[k] / q[others[0]] * p[others[0]] / p[k]) for k in others]
        assert odds == pytest.approx([1.0] * 4, rel=1e-5)
        assert float(q[y]) == pytest.approx(0.05, rel=1e-6)


def test_targets_of_a_saturated_sample_are_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, 0.0, 0.0]])
    blocked = membership(torch.tensor([0]), 4)
    target = adjusted_probabilities(logits, blocked)
    assert target[0].tolist() == pytest.approx([0.0, 1 / 3, 1 / 3, 1 / 3])
    leaf = logits.clone().requires_grad_()
    loss = target_divergence(leaf, target)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx(1e4 - math.log(3), rel=1e-6)
    assert bool(gradient.isfinite().all())
    assert float(log_rest(logits, blocked)[0]) == pytest.approx(math.log(3) - 1e4, rel=1e-6)


def test_pinned_example() -> None:
    """The worked example: z = (2, 1, 0, -1), y = 0."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], requires_grad=True)
    target = masked_softmax(logits.detach(), membership(torch.tensor([0]), 4))
    assert target[0].tolist() == pytest.approx([0.0, 0.665241, 0.244728, 0.090031], abs=1e-6)
    loss = target_divergence(logits, target)
    assert loss.item() == pytest.approx(1.032584, abs=1e-6)
    p_y = float(logits.detach().softmax(dim=1)[0, 0])
    assert loss.item() == pytest.approx(-math.log(1 - p_y), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    pinned = [0.643914, -0.428358, -0.157584, -0.057972]
    assert gradient[0].tolist() == pytest.approx(pinned, abs=1e-6)
    assert gradient[0].tolist() == pytest.approx(
        [p_y, *(-p_y * float(t) for t in target[0, 1:])], abs=1e-6
    )


def test_gradient_of_distillation_is_the_difference_of_the_probabilities() -> None:
    student, labels = some(2)
    teacher, _ = some(3)
    target = adjusted_probabilities(teacher, membership(labels, 5), epsilon=0.1, temperature=3.0)
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target_divergence(leaf, target, 3.0), leaf)
    literal = ((student / 3.0).softmax(dim=1) - target) / (9 * 3.0)
    assert torch.allclose(gradient, literal, atol=1e-7)


def test_distillation_is_the_literal_sum() -> None:
    student, labels = some(4)
    target = adjusted_probabilities(some(5)[0], membership(labels, 5))
    probs = student.softmax(dim=1)
    literal = 0.0
    for row in range(9):
        for k in range(5):
            t = float(target[row, k])
            literal += t * math.log(t / float(probs[row, k])) if t > 0 else 0.0
    assert float(target_divergence(student, target)) == pytest.approx(literal / 9, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_closed_form_is_self_distillation(epsilon: float, t: float) -> None:
    """The value and the gradient agree when teacher and student coincide."""
    logits, labels = some(6)
    blocked = membership(labels, 5)
    blocked[:, 1] = True
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    closed = current_divergence(one, blocked, epsilon=epsilon, temperature=t)
    target = adjusted_probabilities(two, blocked, epsilon=epsilon, temperature=t)
    slow = target_divergence(two, target, t)
    assert closed.item() == pytest.approx(slow.item(), abs=1e-6)
    (first,) = torch.autograd.grad(closed, one)
    (second,) = torch.autograd.grad(slow, two)
    assert torch.allclose(first, second, atol=1e-6)
    p = (logits / t).softmax(dim=1)
    gone = (p * blocked).sum(dim=1).double()
    literal = (1 - epsilon) * ((1 - epsilon) / (1 - gone)).log()
    if epsilon > 0:
        literal = literal + epsilon * (epsilon / gone).log()
    assert closed.item() == pytest.approx(float(literal.mean()), rel=1e-5)


def logit_gradients(own: float) -> tuple[Tensor, Tensor]:
    """Return the logit gradients of log p_y and of -log(1 - p_y) where p_y = own."""
    probs = torch.tensor([[own, 0.6 * (1 - own), 0.4 * (1 - own)]])
    logits = probs.log().requires_grad_()
    label = torch.tensor([0])
    (ascent,) = torch.autograd.grad(bounded_ascent(logits, label), logits)
    rest = -log_rest(logits, membership(label, 3)).mean()
    (removal,) = torch.autograd.grad(rest, logits)
    return ascent, removal


def test_family_of_forgetting_losses() -> None:
    """At p_y = 1/2 ascent and removal push alike; below it ascent pushes more, above it less."""
    ascent, removal = logit_gradients(0.5)
    target = masked_softmax(torch.tensor([[0.5, 0.3, 0.2]]).log(), membership(torch.tensor([0]), 3))
    leaf = torch.tensor([[0.5, 0.3, 0.2]]).log().requires_grad_()
    (distilled,) = torch.autograd.grad(target_divergence(leaf, target), leaf)
    assert torch.allclose(ascent, removal, atol=1e-6)
    assert torch.allclose(removal, distilled, atol=1e-6)
    assert removal[0].tolist() == pytest.approx([0.5, -0.3, -0.2], abs=1e-6)
    low, high = logit_gradients(0.1), logit_gradients(0.9)
    assert float(low[0].norm()) > float(low[1].norm())
    assert float(high[0].norm()) < float(high[1].norm())


def test_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0], [math.log(3), 0, 0, 0]])
    logits[2, 2:] = -torch.inf
    expected = [math.log(4), 0.0, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert entropy(logits).tolist() == pytest.approx(expected, abs=1e-6)


def test_likeness_pinned() -> None:
    same = torch.tensor([0, 0])
    assert float(likeness(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), same)) == 0.0
    assert float(likeness(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), same)) == pytest.approx(1.0)
    assert float(likeness(torch.tensor([[2.0, 0.0], [-3.0, 0.0]]), same)) == pytest.approx(-1.0)


def test_likeness_is_the_literal_mean_over_pairs_of_a_class() -> None:
    features, _ = some(7)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0, 1, 3])
    cosines = []
    for i in range(9):
        for j in range(9):
            if i != j and labels[i] == labels[j]:
                a, b = features[i], features[j]
                cosines.append(float(a @ b / (a.norm() * b.norm())))
    literal = sum(cosines) / len(cosines)
    assert float(likeness(features, labels)) == pytest.approx(literal, abs=1e-6)


def test_likeness_of_samples_without_a_partner_is_zero() -> None:
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = likeness(features, torch.arange(3))
    (gradient,) = torch.autograd.grad(value, features)
    assert value.item() == 0.0
    assert float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize(("samples", "layers"), [(64, 10), (60, 10), (7, 2), (3, 10), (5, 4)])
def test_layers_cover_and_fall_in_entropy(samples: int, layers: int) -> None:
    entropies = torch.rand(samples, generator=torch.Generator().manual_seed(samples))
    chunks = in_layers(entropies, layers)
    assert sorted(torch.cat(chunks).tolist()) == list(range(samples))
    assert len(chunks) <= layers
    assert len({len(chunk) for chunk in chunks[:-1]}) <= 1
    for first, second in itertools.pairwise(chunks):
        assert float(entropies[first].min()) >= float(entropies[second].max())
        assert len(first) >= len(second)


def test_layers_by_size() -> None:
    chunks = in_layers(torch.tensor([0.1, 0.5, 0.3, 0.5]), 99, chunk_size=3)
    assert [chunk.tolist() for chunk in chunks] == [[1, 3, 2], [0]]


def test_empty_batches_give_a_zero_to_step_on() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    blocked = torch.zeros(0, 4, dtype=torch.bool)
    for value in (
        target_divergence(logits, torch.zeros(0, 4)),
        current_divergence(logits, blocked),
    ):
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == 0.0
        assert gradient.shape == (0, 4)
