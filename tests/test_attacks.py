"""Attacks against slow twins that attack one sample at a time in plain steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit import adversarial, draws
from forgetkit.adversarial import (
    AdversarialSet,
    adversarial_set,
    attack_cost,
    held,
    joint_weights,
    pull,
)
from forgetkit.attacks import escape, sign_attack
from forgetkit.data.sets import StoredSet
from forgetkit.errors import BadTarget, DataError
from forgetkit.l2_attacks import (
    escaping_l2_attack,
    into_ball,
    nearest_escape,
    norms,
    random_starts,
    targeted_l2_attack,
)
from forgetkit.losses import blocked_classes
from forgetkit.pixels import PixelRange, pixel_range, pixels_of, rows_at_once, with_pixels
from forgetkit.relabelling import drawn_classes, drawn_labels, reject_contradictions

CLASSES = 5
RADIUS = 0.7


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 25, CLASSES),
    )
    return model.eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


def uniform(purpose: str, positions: Tensor) -> Tensor:
    return draws.uniform(0, purpose, positions)


def literal_targeted(model: nn.Module, x: Tensor, target: int, start: Tensor, n: int) -> Tensor:
    """One image, one target, as the method is written; X = [0, 1], a = 0.1."""
    delta = start.clone()
    for _ in range(n):
        leaf = delta.clone().requires_grad_()
        loss = functional.cross_entropy(model((x + leaf)[None]), torch.tensor([target]))
        loss.backward()
        assert leaf.grad is not None
        g = -leaf.grad
        delta = delta + 0.1 * g / max(float(g.square().sum().sqrt()), 1e-6)
        delta = (x + delta).clamp(0, 1) - x
        length = float(delta.square().sum().sqrt())
        if length > RADIUS:
            delta = delta * RADIUS / length
    return (x + delta).clamp(0, 1)


def attacked_set(
    model: nn.Module, pixels: Tensor, labels: Tensor, at_once: int | None = None, high: float = 1.0
) -> AdversarialSet:
    return adversarial_set(
        pixels,
        torch.arange(len(pixels)) * 3,
        blocked_classes(labels, (), CLASSES),
        lambda inputs: model(inputs),
        uniform,
        pixel_range((0.0, high), []),
        per_sample=4,
        radius=RADIUS,
        step=0.1,
        steps=15,
        device=torch.device("cpu"),
        at_once=at_once,
    )


def test_vectorised_attack_equals_the_literal_one() -> None:
    model, x = network(), images(6)
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    starts = random_starts(x, noise, radius=RADIUS, low=0.0, high=1.0)
    ours = targeted_l2_attack(x, model, targets, starts, radius=RADIUS, step=0.1, steps=15)
    for row in range(6):
        slow = literal_targeted(model, x[row], int(targets[row]), starts[row], 15)
        assert torch.allclose(ours[row], slow, atol=1e-5)
    assert float((ours - x).abs().max()) > 0.05


def test_the_set_of_images_with_black_and_white_pixels_is_the_literal_one() -> None:
    """Most pixels of a drawing are at an end of the range, where a clamp has half a slope."""
    model, x = network(), images(6).round()
    made = attacked_set(model, x, torch.arange(6) % CLASSES)
    pairs = (torch.arange(6) * 3).repeat_interleave(4) * adversarial.MOST_PER_SAMPLE
    counters = (pairs + torch.arange(4).repeat(6))[:, None] * 50 + torch.arange(50)
    noise = uniform("adversarial start", counters.reshape(-1)).view(24, *x.shape[1:])
    starts = random_starts(x[made.rows], noise, radius=RADIUS, low=0.0, high=1.0)
    for pair, row in enumerate(made.rows.tolist()):
        slow = literal_targeted(model, x[row], int(made.targets[pair]), starts[pair], 15)
        assert torch.allclose(made.pixels[pair], slow, atol=1e-5)


def test_random_starts_follow_the_text() -> None:
    x, noise = images(5), torch.rand(5, 2, 5, 5, generator=torch.Generator().manual_seed(4))
    starts = random_starts(x, noise, radius=RADIUS, low=0.0, high=1.0)
    for row in range(5):
        move = noise[row] - x[row]
        length = float(move.norm())
        move = move * min(1.0, RADIUS / length)
        assert torch.allclose(starts[row], (x[row] + move).clamp(0, 1) - x[row], atol=1e-6)
    assert float(norms(starts).max()) == pytest.approx(RADIUS, abs=1e-5)


def test_set_is_the_same_whatever_is_attacked_at_once() -> None:
    model, x = network(), images(7)
    labels = torch.arange(7) % CLASSES
    whole = attacked_set(model, x, labels)
    alone = attacked_set(model, x, labels, at_once=1)
    thirds = attacked_set(model, x, labels, at_once=3)
    assert torch.allclose(whole.pixels, alone.pixels, atol=1e-5)
    assert torch.allclose(whole.pixels, thirds.pixels, atol=1e-5)
    assert torch.equal(whole.targets, alone.targets)
    assert whole.reached == alone.reached


def test_set_does_not_depend_on_the_order_of_the_samples() -> None:
    model, x = network(), images(5)
    labels = torch.arange(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    span = pixel_range((0.0, 1.0), [])

    def made(rows: Tensor) -> AdversarialSet:
        return adversarial_set(
            x[rows], rows, blocked_classes(labels[rows], (), CLASSES), model, uniform, span,
            per_sample=3, radius=RADIUS, step=0.1, steps=5, device=torch.device("cpu"),
        )  # fmt: skip

    first, second = made(torch.arange(5)), made(order)
    for place, row in enumerate(order.tolist()):
        own, other = slice(3 * row, 3 * row + 3), slice(3 * place, 3 * place + 3)
        assert torch.equal(first.targets[own], second.targets[other])
        assert torch.allclose(first.pixels[own], second.pixels[other], atol=1e-5)


@pytest.mark.parametrize("label", range(CLASSES))
def test_every_image_keeps_to_ball_range_and_other_classes(label: int) -> None:
    """Also for y = K // 2, where the reference code falls back to the true label."""
    model, x = network(), images(6)
    made = attacked_set(model, x, torch.full((6,), label))
    assert len(made.pixels) == len(made.targets) == 6 * 4
    moves = made.pixels - x[made.rows]
    assert float(norms(moves).max()) <= RADIUS + 1e-5
    assert float(made.pixels.min()) >= 0.0
    assert float(made.pixels.max()) <= 1.0
    assert not (made.targets == label).any()
    assert ((made.targets >= 0) & (made.targets < CLASSES)).all()
    by_image = made.targets.view(6, 4)
    assert (by_image != by_image[:, :1]).any()


def test_a_large_set_is_kept_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, labels = network(), images(6), torch.arange(6) % CLASSES
    size = 4 * 50 * 6 * 4  # bytes in float32
    monkeypatch.setattr(adversarial, "_HALF_ABOVE", size)
    whole = attacked_set(model, x, labels)
    monkeypatch.setattr(adversarial, "_HALF_ABOVE", size - 1)
    half = attacked_set(model, x, labels)
    assert (whole.pixels.dtype, half.pixels.dtype) == (torch.float32, torch.float16)
    assert torch.equal(half.targets, whole.targets)
    assert torch.equal(half.rows, whole.rows)
    assert half.reached == whole.reached
    rounding = (half.pixels.float() - whole.pixels).abs()
    assert float(rounding.max()) > 0.0
    assert bool((rounding <= 2**-11 * whole.pixels + 2**-25).all())  # half a unit in the last place
    lengths = norms(half.pixels.float() - x[half.rows])
    slack = norms(2**-11 * whole.pixels) + 1e-5
    assert bool((lengths <= RADIUS + slack).all())
    assert float(slack.max()) < 0.004
    assert float(lengths.max()) > 0.99 * RADIUS
    assert float(half.pixels.min()) >= 0.0
    assert float(half.pixels.max()) <= 1.0


def test_pixels_beyond_half_precision_are_kept_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "_HALF_ABOVE", 0)
    model, x, labels = network(), images(6), torch.arange(6) % CLASSES
    made = attacked_set(model, x * 1e5, labels, high=1e5)
    assert made.pixels.dtype == torch.float32
    assert bool(torch.isfinite(made.pixels).all())


def test_success_rate_is_that_of_the_images() -> None:
    model, x = network(), images(8)
    made = attacked_set(model, x, torch.arange(8) % CLASSES)
    read = model(made.pixels).argmax(dim=1)
    assert made.reached == pytest.approx(float((read == made.targets).float().mean()))
    assert made.reached > 0.0
    assert attack_cost(8, 4, 15) == 480


def test_attack_does_not_touch_the_weights() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attacked_set(model, images(3), torch.tensor([0, 1, 2]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_into_ball_scales_only_what_is_outside() -> None:
    moves = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(into_ball(moves, 1.0), expected)
    assert torch.equal(into_ball(moves, 0.0), torch.zeros(3, 2))


def test_escape_has_the_direction_of_cross_entropy_and_does_not_vanish() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    leaf = logits.clone().requires_grad_()
    (ours,) = torch.autograd.grad(escape(leaf, labels).sum(), leaf)
    loss = functional.cross_entropy(leaf, labels, reduction="sum")
    (theirs,) = torch.autograd.grad(loss, leaf)
    wrong = 1 - logits.softmax(dim=1)[torch.arange(6), labels]
    assert torch.allclose(ours * wrong[:, None], theirs)
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    (ours,) = torch.autograd.grad(escape(sure, torch.tensor([0])).sum(), sure)
    (theirs,) = torch.autograd.grad(functional.cross_entropy(sure, torch.tensor([0])), sure)
    assert torch.allclose(ours, torch.tensor([[-1.0, 0.5, 0.5]]))
    assert float(theirs.abs().max()) == 0.0


def test_sign_attack_moves_a_confident_model() -> None:
    weight = torch.tensor([[300.0, 0.0], [0.0, 300.0]])
    start = torch.tensor([[1.0, 0.0]])
    moved = sign_attack(
        start, lambda x: x @ weight.T, torch.tensor([0]), step=0.2, steps=1, project=lambda x: x
    )
    assert torch.allclose(moved, torch.tensor([[0.8, 0.2]]))


def test_escaping_attack_ascends_by_the_normalised_gradient() -> None:
    model, x = network(), images(4)
    labels = model(x).argmax(dim=1)
    ours = escaping_l2_attack(x, model, labels, radius=1.0, step=0.1, steps=1)
    for row in range(4):
        leaf = x[row : row + 1].clone().requires_grad_()
        loss = functional.cross_entropy(model(leaf).double(), labels[row : row + 1])
        (g,) = torch.autograd.grad(loss, leaf)
        assert torch.allclose(ours[row], (leaf + 0.1 * g / g.norm()).clamp(0, 1)[0], atol=1e-5)


@pytest.mark.parametrize("attack", [targeted_l2_attack, escaping_l2_attack])
def test_gradients_too_small_for_half_precision_are_not_lost(attack: Callable[..., Tensor]) -> None:
    def logits_of(x: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
        return 2.0**-13 * (2.0**-13 * x.to(dtype))  # two layers, whose gradients multiply

    x, labels = torch.tensor([[0.5, 0.4], [0.3, 0.6]]), torch.tensor([0, 1])
    more = (torch.zeros_like(x),) if attack is targeted_l2_attack else ()
    settings = {"radius": 1.0, "step": 10.0, "steps": 1}
    in_single = partial(logits_of, dtype=torch.float32)
    single = attack(x, in_single, labels, *more, **settings)
    assert float((single - x).abs().min()) > 0.01
    assert torch.allclose(attack(x, logits_of, labels, *more, **settings), single, rtol=0.01)


def test_nearest_escape_finds_the_first_radius_that_succeeds() -> None:
    model, x = network(), images(10)
    own = model(x).argmax(dim=1)
    attacked, predicted, found = nearest_escape(
        x, lambda moved, rows: model(moved), radius=0.05, doublings=6, steps=10
    )
    assert (found > 0).all()
    assert (predicted != own).all()
    assert torch.equal(model(attacked).argmax(dim=1), predicted)
    for row in range(10):
        radius = 0.05
        while True:  # the first doubling that succeeds, one image at a time
            slow = escaping_l2_attack(
                x[row : row + 1], model, own[row : row + 1], radius=radius, step=radius / 10,
                steps=10,
            )  # fmt: skip
            if int(model(slow).argmax()) != int(own[row]):
                break
            radius *= 2
        assert float(found[row]) == pytest.approx(radius)
        assert torch.allclose(attacked[row], slow[0], atol=1e-5)
        assert float((attacked[row] - x[row]).norm()) <= radius + 1e-5


@pytest.mark.parametrize(("doublings", "radius"), [(1, 0.0), (2, 0.4)])
def test_the_radius_is_doubled_as_often_as_was_asked_for(doublings: int, radius: float) -> None:
    def two(moved: Tensor, _: Tensor) -> Tensor:
        place = moved.sum(dim=1, keepdim=True)
        return torch.cat([0.5 - place, place - 0.5], dim=1)

    found = nearest_escape(torch.tensor([[0.2]]), two, radius=0.1, doublings=doublings, steps=10)[2]
    assert found.tolist() == pytest.approx([radius])


def test_nearest_escape_says_when_nothing_is_found() -> None:
    x = images(3)
    attacked, predicted, found = nearest_escape(
        x, lambda moved, rows: moved.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0]),
        radius=0.1, doublings=1, steps=2,
    )  # fmt: skip
    assert torch.equal(found, torch.zeros(3))
    assert torch.equal(predicted, torch.zeros(3, dtype=torch.long))
    assert torch.equal(attacked, x)


def test_range_is_that_of_each_channel() -> None:
    first = torch.tensor([[[[0.0, 2.0]], [[5.0, 6.0]]]])
    second = torch.tensor([[[[-1.0, 1.0]], [[7.0, 7.0]]]])
    span = pixel_range(None, [first, second])
    assert span.low.flatten().tolist() == [-1.0, 5.0]
    assert span.high.flatten().tolist() == [2.0, 7.0]
    assert "seen" in span.describe()
    for batch in (first, second):
        assert torch.allclose(span.from_unit(span.to_unit(batch)), batch)
    assert float(span.to_unit(first).min()) >= 0.0
    assert float(span.to_unit(second).max()) <= 1.0


def test_range_given_by_bounds_reads_no_image() -> None:
    span = pixel_range((-2.0, 2.0), iter([torch.zeros(0)]))
    assert span.to_unit(torch.tensor([-2.0, 0.0, 2.0])).tolist() == [0.0, 0.5, 1.0]
    assert span.from_unit(torch.tensor([-1.0, 2.0])).tolist() == [-2.0, 2.0]
    assert "bounds" in span.describe()


def test_images_outside_the_bounds_are_told() -> None:
    told: list[str] = []
    batches = [torch.tensor([[-0.5, 0.0, 0.5, 1.0]]), torch.tensor([[0.2, 1.005, 2.0, 1.5]])]
    span = pixel_range((0.0, 1.0), batches, told.append)
    assert (float(span.low), float(span.high)) == (0.0, 1.0)
    assert len(told) == 1
    assert "bounds: 38 % of the values of the images, which run from -0.5 to 2," in told[0]
    by_channel = ((-0.5, 0.0), (1.0, 2.0))
    images = torch.stack(batches).view(1, 2, 2, 2)
    pixel_range(by_channel, iter([images]), told.append)
    assert len(told) == 1
    pixel_range(by_channel, iter([images, images + 1]), told.append)
    assert "bounds: 25 %" in told[1]


def test_range_by_channel_makes_normalised_images_unit_ones() -> None:
    unit = torch.rand(5, 3, 4, 4)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    shape = (1, 3, 1, 1)
    seen = (unit - mean.view(shape)) / std.view(shape)
    bounds = tuple((-mean / std).tolist()), tuple(((1 - mean) / std).tolist())
    found = pixel_range(bounds, iter([seen]))
    assert torch.allclose(found.to_unit(seen), unit, atol=1e-6)
    assert torch.allclose(found.from_unit(unit), seen, atol=1e-5)
    for wrong in (torch.rand(5, 1, 4, 4), torch.rand(5, 3)):
        with pytest.raises(DataError, match="one number for each channel"):
            pixel_range(bounds, [wrong])


def test_vectors_share_one_range_and_constant_channels_stay() -> None:
    span = pixel_range(None, [torch.tensor([[0.0, 3.0], [1.0, 2.0]])])
    assert float(span.low) == 0.0
    assert float(span.high) == 3.0
    flat = PixelRange(torch.tensor(2.0), torch.tensor(2.0), "test")
    assert flat.from_unit(flat.to_unit(torch.tensor([2.0])) + 0.5).tolist() == [2.0]


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.0,), (1.0,)), ((0.1307,), (0.3081,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_pixels_at_the_ends_keep_their_slope_and_stay_inside(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """With ImageNet's constants low + (high - low) rounds to above high in two channels."""
    middle, scale = torch.tensor(mean), torch.tensor(std)
    low, high = (-middle / scale).view(1, -1, 1), ((1 - middle) / scale).view(1, -1, 1)
    span = PixelRange(low, high, "test")
    unit = torch.tensor([-0.3, 0.0, 0.5, 1.0, 1.7]).expand(1, len(mean), 5)
    leaf = unit.clone().requires_grad_()
    found = span.from_unit(leaf)
    clamped = torch.minimum(torch.maximum(low + unit * (high - low), low), high)
    assert torch.equal(found.detach(), clamped)
    (slope,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(slope, (high - low).expand_as(slope))


def test_range_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="pass bounds="):
        pixel_range(None, [torch.zeros(0, 3, 4, 4)])


def test_attack_in_unit_space_is_the_same_for_normalised_inputs() -> None:
    """The radius means the same for a model with and without normalisation inside."""
    model, x = network(), images(5)
    mean = torch.tensor([0.4, 0.5]).view(1, 2, 1, 1)
    std = torch.tensor([0.2, 0.3]).view(1, 2, 1, 1)
    labels = torch.arange(5)
    inside = PixelRange(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), "test")
    outside = PixelRange((0 - mean) / std, (1 - mean) / std, "test")

    def made(pixels: Tensor, span: PixelRange, normalised: bool) -> Tensor:
        return adversarial_set(
            pixels, torch.arange(5), blocked_classes(labels, (), CLASSES),
            lambda z: model(z * std + mean if normalised and isinstance(z, Tensor) else z),
            uniform, span, per_sample=2, radius=RADIUS, step=0.1, steps=8,
            device=torch.device("cpu"),
        ).pixels  # fmt: skip

    plain = made(x, inside, normalised=False)
    shifted = made((x - mean) / std, outside, normalised=True)
    assert torch.allclose(shifted * std + mean, plain, atol=1e-4)


def test_named_inputs_keep_what_is_no_image() -> None:
    inputs = {"pixel_values": images(3), "mask": torch.tensor([[1], [2], [3]])}
    name, pixels = pixels_of(inputs)
    assert name == "pixel_values"
    rows = torch.tensor([2, 0])
    changed = with_pixels(inputs, pixels[rows] + 1, rows)
    assert isinstance(changed, dict)
    assert changed["mask"].tolist() == [[3], [1]]
    assert torch.equal(changed["pixel_values"], pixels[rows] + 1)


def test_inputs_without_one_float_tensor_are_refused() -> None:
    with pytest.raises(DataError, match="uint8"):
        pixels_of(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(DataError, match="exactly one"):
        pixels_of({"a": torch.zeros(1), "b": torch.zeros(1)})


def test_memory_budget_cuts_the_batch() -> None:
    model, x = network(), images(1)
    assert rows_at_once(model, x, 1) == 1
    few, many = rows_at_once(model, x, 10_000), rows_at_once(model, x, 1_000_000)
    assert 1 < few < many
    assert many == pytest.approx(100 * few, rel=0.2)


def test_drawn_classes_are_allowed_and_uniform() -> None:
    blocked = blocked_classes(torch.full((400,), 2), (4,), CLASSES)
    numbers = torch.rand(400, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(drawn_classes(numbers, blocked).flatten(), minlength=CLASSES)
    assert counts[[2, 4]].tolist() == [0, 0]
    assert float(counts[[0, 1, 3]].min()) > 3100
    edge = drawn_classes(torch.tensor([[0.0, 0.999999]]), blocked[:1])
    assert edge.tolist() == [[0, 3]]


def test_equal_images_with_different_new_labels_are_refused() -> None:
    x = images(3)
    twice = StoredSet(torch.cat([x, x[:1]]), torch.zeros(4, dtype=torch.long))
    reject_contradictions(twice, torch.tensor([1, 2, 3, 1]))
    with pytest.raises(BadTarget, match="positions 0 and 3"):
        reject_contradictions(twice, torch.tensor([1, 2, 3, 2]))


def test_equal_images_with_other_inputs_beside_them_are_no_contradiction() -> None:
    x = images(1).expand(2, *images(1).shape[1:])
    labels = torch.zeros(2, dtype=torch.long)
    masks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    told = StoredSet({"pixel_mask": masks, "pixel_values": x}, labels)
    reject_contradictions(told, torch.tensor([1, 2]))
    same = StoredSet({"pixel_mask": masks[:1].expand(2, 2), "pixel_values": x}, labels + 0)
    with pytest.raises(BadTarget, match="positions 0 and 1"):
        reject_contradictions(same, torch.tensor([1, 2]))


def test_weights_of_the_two_terms() -> None:
    first, second = joint_weights(16, 256, "size")
    assert first == pytest.approx(16 / 272)
    assert first + second == 1.0
    assert joint_weights(16, 256, "sum") == (1.0, 1.0)


def test_held_is_one_minus_the_scaled_importance() -> None:
    assert torch.allclose(held(torch.tensor([2.0, 6.0, 3.0])), torch.tensor([1.0, 0.0, 0.75]))
    for equal in (torch.zeros(4), torch.full((2, 2), 3.0), torch.tensor([7.0])):
        assert torch.equal(held(equal), torch.ones_like(equal))


def test_pull_is_zero_at_the_start_and_its_gradient_is_the_weighted_way() -> None:
    generator = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(4, generator=generator)}
    strength = {name: torch.rand(value.shape, generator=generator) for name, value in start.items()}
    assert float(pull(start, start, strength)) == 0.0
    now = {name: (value + 0.3).requires_grad_() for name, value in start.items()}
    pull(now, start, strength).backward()
    for name, value in now.items():
        assert value.grad is not None
        expected = strength[name] * (value.detach() - start[name])
        assert torch.allclose(value.grad, expected, atol=1e-6)
    literal = sum(
        float(s * (n - o) ** 2)
        for name in now
        for s, n, o in zip(
            strength[name].flatten(),
            now[name].detach().flatten(),
            start[name].flatten(),
            strict=True,
        )
    )
    assert float(pull(now, start, strength).detach()) == pytest.approx(literal / 2, rel=1e-5)


def test_labels_drawn_for_equal_images_do_not_depend_on_the_order() -> None:
    x = images(5)
    twice = StoredSet(torch.cat([x, x[:3]]), torch.zeros(8, dtype=torch.long))
    blocked = blocked_classes(twice.labels, (), CLASSES)

    def draw(positions: Tensor) -> Tensor:
        return draws.uniform(3, "some", positions)

    whole = drawn_labels(twice, draw, blocked)
    assert torch.equal(whole[5:], whole[:3])
    assert torch.equal(whole, drawn_classes(draw(torch.arange(8) % 5)[:, None], blocked)[:, 0])
    order = torch.tensor([7, 1, 6, 0, 5, 2, 4, 3])
    assert torch.equal(drawn_labels(twice.take(order), draw, blocked[order]), whole[order])


@pytest.mark.parametrize(("size", "part"), [(1e-8, 1e-2), (4e-7, 0.4), (1e-5, 1.0)])
@pytest.mark.parametrize("attack", [targeted_l2_attack, escaping_l2_attack])
def test_a_gradient_below_a_millionth_moves_an_input_less(
    attack: Callable[..., Tensor], size: float, part: float
) -> None:
    """By a |g| / 1e-6 and not by a: what is rounding decides nothing."""
    wanted = attack is targeted_l2_attack
    scale = 2 * size if wanted else size  # both classes have a probability of a half
    rows = scale * torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    label = torch.tensor([0 if wanted else 1])
    starts = (torch.zeros(1, 2),) if wanted else ()
    x = torch.full((1, 2), 0.3)
    moved = attack(x, lambda x: x @ rows.T, label, *starts, radius=1.0, step=0.5, steps=1)
    assert torch.allclose(moved - x, 0.5 * part * torch.tensor([[0.6, 0.8]]), rtol=1e-3, atol=1e-6)
