from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_digits import learned, shuffled_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.attacks import affine_sign_attack, projection, sign_attack
from forgetkit.engine.run import Run
from forgetkit.losses import blocked_classes, kl_divergence
from forgetkit.method import Pair, State, build
from forgetkit.methods.lau import LAU
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Batch


def random_head(seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    weight = scale * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    bias = scale * torch.randn(5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (7,), generator=generator)
    return features, weight, bias, labels


def closed(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, steps: int) -> Tensor:
    blocked = blocked_classes(labels, (), len(weight))
    return affine_sign_attack(
        features, weight, bias, labels, blocked, step=0.6, steps=steps, project=lambda moved: moved
    )


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_step_is_the_sign_of_the_gradient(seed: int) -> None:
    features, weight, bias, labels = random_head(seed)
    ours = closed(features, weight, bias, labels, steps=1)
    leaf = features.clone().requires_grad_()
    loss = nn.functional.cross_entropy(leaf @ weight.T + bias, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    clear = gradient.abs() > 1e-12
    assert clear.float().mean() > 0.9
    assert torch.equal(((ours - features) / 0.6).round()[clear], gradient.sign()[clear])


def test_closed_form_survives_a_saturated_softmax() -> None:
    features, weight, bias, _ = random_head(3, scale=1e4)
    logits = features @ weight.T + bias
    labels = logits.argmax(dim=1)
    runner_up = logits.scatter(1, labels[:, None], -math.inf).argmax(dim=1)
    ours = closed(features, weight, bias, labels, steps=1)
    assert torch.equal(
        ((ours - features) / 0.6).round(), (weight[runner_up] - weight[labels]).sign()
    )
    leaf = features.float().requires_grad_()
    logits32 = leaf @ weight.T.float() + bias.float()
    loss = nn.functional.cross_entropy(logits32, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert (gradient == 0).all()  # what autograd sees: nothing


def test_autograd_attack_equals_the_closed_form() -> None:
    features, weight, bias, labels = random_head(11)
    ours = closed(features, weight, bias, labels, steps=4)
    theirs = sign_attack(
        features,
        lambda moved: moved @ weight.T + bias,
        labels,
        step=0.6,
        steps=4,
        project=lambda moved: moved,
    )
    assert torch.allclose(ours, theirs)


def test_autograd_attack_avoids_every_forgotten_class() -> None:
    features, weight, bias, _ = random_head(11)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    blocked = blocked_classes(labels, (0, 1, 2), 5)
    closed_form = partial(affine_sign_attack, step=0.6, steps=4, project=lambda moved: moved)
    autograd = partial(sign_attack, step=0.6, steps=4, project=lambda moved: moved)
    ours = closed_form(features, weight, bias, labels, blocked)
    theirs = autograd(features, lambda m: m @ weight.T + bias, labels, blocked=blocked)
    alone = autograd(features, lambda m: m @ weight.T + bias, labels)
    assert torch.allclose(ours, theirs)
    assert not torch.allclose(ours, alone)


def test_whole_bank_and_per_batch_attacks_are_identical() -> None:
    features, weight, bias, labels = random_head(5)
    whole = closed(features, weight, bias, labels, steps=3)
    parts = [
        closed(f, weight, bias, y, steps=3)
        for f, y in zip(features.split(2), labels.split(2), strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_projection() -> None:
    start = torch.tensor([[0.0, 1.0]])
    moved = torch.tensor([[2.0, -3.0]])
    assert torch.equal(projection(start, None, None)(moved), moved)
    assert torch.equal(projection(start, 0.5, None)(moved), torch.tensor([[0.5, 0.5]]))
    assert torch.equal(projection(start, None, (0.0, 1.0))(moved), torch.tensor([[1.0, 0.0]]))


def test_double_softmax_rows_are_nearly_uniform() -> None:
    logits = 50 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    rows = LAU().softened(logits).softmax(dim=1)
    assert torch.allclose(rows.sum(dim=1), torch.ones(64))
    ratio = rows.max(dim=1).values / rows.min(dim=1).values
    assert float(ratio.max()) <= math.exp(1 / 4.0) + 1e-6


def test_kl_is_the_literal_sum() -> None:
    target = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    model = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    literal = 0.0
    for row in range(2):
        for k in range(3):
            literal += float(target[row, k]) * math.log(float(target[row, k] / model[row, k]))
    assert float(kl_divergence(target, model.log())) == pytest.approx(literal / 2, rel=1e-5)
    assert literal / 2 == pytest.approx(0.111820, abs=1e-5)


def literal_loss(
    student: Tensor,
    teacher: Tensor,
    label: int,
    forgotten: list[int],
    alpha: float,
    t: float,
    *,
    twice: bool = True,
    reverse: bool = False,
    mean: bool = False,
) -> float:
    """One sample of the objective in plain loops, from the text of the method."""
    classes = len(student)
    blocked = {label, *forgotten}
    predicted = max(range(classes), key=lambda k: float(student[k]))
    remembered = predicted in blocked
    goal = predicted
    if remembered:
        goal = max((k for k in range(classes) if k not in blocked), key=lambda k: float(teacher[k]))

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        powers = [math.exp(value - top) for value in row]
        return [power / sum(powers) for power in powers]

    plain = softmax([float(value) for value in student])
    source = [float(value) for value in (teacher if remembered else student)]
    target = softmax([value / t for value in (softmax(source) if twice else source)])
    soft_student = softmax([float(value) / t for value in student])
    pair = (soft_student, target) if reverse else (target, soft_student)
    distance = sum(q * math.log(q / s) for q, s in zip(*pair, strict=True))
    distance /= classes if mean else 1
    return (1 - alpha) * -math.log(plain[goal]) + alpha * t**2 * distance


def test_first_step_follows_the_literal_objective() -> None:
    """The engine's first loss equals the slow twin over the first batch."""
    some = toy("cnn")
    result = (
        forget(some.model)
        .classes([3])
        .using("lau", epochs=1, batch_size=65536, check_every=1)
        .on("cpu")
        .run(some.forget_loader(), guard=None)
    )
    fresh = toy("cnn").model.eval()
    images = some.train.tensors[0][some.train.tensors[1] == 3]
    labels = torch.full((len(images),), 3)
    with torch.no_grad():
        features = fresh.get_submodule("body")(images).mean(dim=(2, 3))
        head = fresh.get_submodule("fc")
        assert isinstance(head, nn.Linear)
        weight, bias = head.weight, head.bias
        blocked = blocked_classes(labels, (3,), 4)
        attacked = affine_sign_attack(
            features, weight, bias, labels, blocked, step=0.6, steps=10, project=lambda m: m
        )
        students, teachers = head(features), head(attacked)
    literal = [
        literal_loss(s, z, 3, [3], 0.5, 4.0) for s, z in zip(students, teachers, strict=True)
    ]
    assert result.history[0]["loss"] == pytest.approx(sum(literal) / len(literal), rel=1e-4)


@pytest.mark.parametrize("forgotten", [(3,), (1, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"double_softmax": False},
        {"kd_direction": "student"},
        {"kd_reduction": "mean"},
        {"double_softmax": False, "kd_direction": "student", "kd_reduction": "mean"},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_the_objective_is_the_literal_one_for_remembered_and_lost_samples(
    options: dict[str, Any], forgotten: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(5)
    students, teachers = (2 * torch.randn(12, 5, generator=generator) for _ in range(2))
    labels = torch.tensor([3, forgotten[0]]).repeat(6)
    gone = torch.isin(students.argmax(dim=1), torch.tensor(forgotten))
    assert 0 < int(gone.sum()) < 12
    run = SimpleNamespace(
        logits=lambda batch: students[batch.index].requires_grad_(),
        state={"teacher": teachers}, forget_classes=forgotten, num_classes=5,
    )  # fmt: skip
    rows = torch.tensor([11, 2, 5, 0, 7, 3, 8, 9])
    batch = Batch(torch.zeros(8, 1), labels[rows], rows, 8)
    terms = LAU(alpha=0.3, temperature=2.5, **options).loss(Pair(batch, None), run)  # type: ignore[arg-type]  # what a loss reads of a run
    literal = [
        literal_loss(
            students[row], teachers[row], int(labels[row]), list(forgotten), 0.3, 2.5,
            twice=options.get("double_softmax", True),
            reverse=options.get("kd_direction") == "student",
            mean=options.get("kd_reduction") == "mean",
        )
        for row in rows.tolist()
    ]  # fmt: skip
    found = float((terms["hard"] + terms["soft"]).detach())
    assert found == pytest.approx(sum(literal) / len(literal), rel=1e-5)


def test_without_editing_the_bias_it_keeps_its_bits() -> None:
    some = toy("cnn")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("lau", edit_bias=False).on("cpu")
    request.run(some.forget_loader(), guard=None)
    assert changed(before, weights(some.model)) == ["fc.weight"]


@pytest.mark.parametrize("kind", TOYS)
def test_images_are_attacked_through_a_model_in_half_precision(kind: str) -> None:
    some = toy(kind)
    some.model.to(torch.bfloat16)
    request = forget(some.model).classes([3]).using("lau", attack="full", attack_steps=3)
    result = request.on("cpu").run(some.forget_loader(), guard=None)
    assert result.after["forget"].accuracy <= 0.05
    assert all(p.dtype == torch.bfloat16 for p in some.model.parameters())


@pytest.mark.parametrize(("size", "epochs"), [(16, 5), (60, 1)])
def test_backbone_runs_once_whatever_the_settings(size: int, epochs: int) -> None:
    some = toy("cnn")
    seen: list[int] = []
    body = some.model.get_submodule("body")
    hook = body.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    request = forget(some.model).classes([3]).using("lau", epochs=epochs, attack_steps=7, lr=1e-4)
    request.on("cpu").run(some.forget_loader(batch_size=size), guard=None)
    hook.remove()
    whole = [count for count in seen if count > 2]  # two samples at a time find and check the head
    assert whole == [size] * (60 // size) + [60 % size] * (60 % size > 0)
    assert len(seen) - len(whole) <= 3


def test_result_does_not_depend_on_the_loaders_batch_size() -> None:
    outcomes = []
    for size in (7, 60):
        some = toy("cnn")
        request = forget(some.model).classes([3]).using("lau").on("cpu")
        request.run(some.forget_loader(batch_size=size), guard=None)
        outcomes.append(weights(some.model))
    for name, value in outcomes[0].items():
        assert torch.allclose(value, outcomes[1][name], atol=1e-6), name


def test_rows_that_are_already_wrong_pull_nothing() -> None:
    """With all rows misclassified and double softmax off, the soft term has no gradient."""
    student = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    own = student.detach()
    method = LAU(double_softmax=False)
    soft = method._distance(method.softened(own), student / method.temperature)
    (gradient,) = torch.autograd.grad(soft, student)
    assert float(gradient.abs().max()) < 1e-7


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("label", range(4))
def test_every_class_is_forgotten_and_the_rest_kept(kind: str, label: int) -> None:
    some = toy(kind)
    others = [other for other in range(4) if other != label]
    kept = some.accuracy(some.test, others)
    before = weights(some.model)
    result = (
        forget(some.model)
        .classes([label])
        .using("lau")
        .on("cpu")
        .run(some.forget_loader(label), guard=None)
    )
    assert result.after["forget"].accuracy == 0.0
    assert some.accuracy(some.test, [label]) <= 0.05
    assert some.accuracy(some.test, others) >= kept - 0.05
    head = {"cnn": {"fc.weight", "fc.bias"}, "vit": {"head.weight", "head.bias"}}[kind]
    assert set(changed(before, weights(some.model))) <= head


def test_two_classes_are_not_poured_into_each_other() -> None:
    some = toy("cnn")
    result = (
        forget(some.model).classes([1, 3]).using("lau").on("cpu").run(some.loader(), guard=None)
    )
    assert result.after["forget"].accuracy == 0.0
    images, labels = some.train.tensors
    gone = torch.isin(labels, torch.tensor([1, 3]))
    predicted = some.model.eval()(images[gone]).argmax(dim=1)
    assert not torch.isin(predicted, torch.tensor([1, 3])).any()


class Swapped(nn.Module):
    """Reads class 0 as 1 and 1 as 0, so that no forget sample is ever right."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.fc = nn.Linear(4, 4)
        with torch.no_grad():
            self.fc.weight.copy_(4 * torch.eye(4)[[1, 0, 2, 3]])
            self.fc.bias.zero_()

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(points))
        return logits


def test_wrong_answers_among_the_forgotten_classes_do_not_count_as_forgotten() -> None:
    labels = torch.arange(4).repeat_interleave(20)
    points = torch.eye(4)[labels] + 0.1 * torch.randn(80, 4, generator=torch.manual_seed(0))
    model = Swapped()
    loader = DataLoader(TensorDataset(points, labels), batch_size=16)
    request = forget(model).classes([0, 1]).using("lau", lr=0.1).on("cpu")
    result = request.run(loader, guard=None)
    assert result.before["forget"].accuracy == 0.0
    assert (model(points[labels < 2]).argmax(dim=1) >= 2).all()
    assert (model(points[labels >= 2]).argmax(dim=1) == labels[labels >= 2]).all()


def test_history_has_the_share_of_failed_attacks() -> None:
    shares = {}
    for steps in (1, 20):
        some = toy("cnn")
        method = LAU(attack_steps=steps, attack_step=1e-4 if steps == 1 else 0.6, epochs=1)
        request = forget(some.model).classes([3]).using(method).on("cpu")
        shares[steps] = request.run(some.forget_loader(), guard=None).history[0]["failed_attacks"]
    assert shares[1] > 0.5  # a step too short to leave the class
    assert shares[20] == 0.0


def test_presets() -> None:
    assert build("lau", {"preset": "paper"}) == LAU(momentum=0.0)
    code = build("lau", {"preset": "code"})
    assert isinstance(code, LAU)
    assert (code.attack_steps, code.attack_step, code.attack_radius) == (40, 0.4, 0.3)
    assert (code.attack_clamp, code.kd_reduction) == ((0.0, 1.0), "mean")


def test_a_share_says_that_its_figures_are_of_the_drawn_samples() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("lau", share=0.1).on("cpu")
    result = request.run(some.forget_loader(), guard=None)
    assert any("drew 6 samples" in note for note in result.notes)
    assert result.before["forget"].samples == 6


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.fc = nn.Linear(16, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(inputs))
        return logits


def written_in_halves(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a bfloat16 model of six classes, and what it was trained on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labels = torch.arange(600) % 6
        inputs = torch.randn(6, 16)[labels] + torch.randn(600, 16)
        model = Hidden()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.to(torch.bfloat16), inputs, labels


@pytest.mark.slow
def test_several_classes_are_gone_from_the_weights_as_they_are_written() -> None:
    done = 0
    for seed in range(8, 17):
        model, inputs, labels = written_in_halves(seed)
        request = forget(model).classes([0, 1]).using("lau", lr=1e-3, batch_size=32, epochs=60)
        data = DataLoader(TensorDataset(inputs, labels), batch_size=100)
        result = request.on("cpu").run(data, guard=None)
        if "reached its target" in result.stopped_because:
            done += 1
            inside = model(inputs[labels < 2].bfloat16()).argmax(dim=1) < 2
            assert int(inside.sum()) == 0, seed
    assert done > 3


class Plain(nn.Module):
    """A body that does nothing and a linear head, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.fc = nn.Linear(6, 5, dtype=torch.float64)

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(points))
        return logits


def literal_run(
    head: list[Tensor], points: Tensor, labels: Tensor, forgotten: list[int], *, lr: float
) -> int:
    """The algorithm in plain words, three epochs; moves weight and bias, returns the steps made."""
    own = labels[:, None] == torch.arange(5)
    blocked = own | torch.isin(torch.arange(5), torch.tensor(forgotten))
    velocity = [torch.zeros_like(part) for part in head]
    draws, steps = torch.Generator().manual_seed(0), 0
    for _ in range(3):
        weight, bias = (part.clone() for part in head)  # the teacher, copied once an epoch
        attacked = points.clone()
        for _ in range(3):
            leaf = attacked.clone().requires_grad_()
            scores = (leaf @ weight.T + bias).masked_fill(blocked & ~own, -torch.inf)
            (gradient,) = torch.autograd.grad(-scores.log_softmax(dim=1)[own].sum(), leaf)
            attacked = attacked + 0.6 * gradient.sign()
        taught = attacked @ weight.T + bias
        reached = taught.masked_fill(blocked, -torch.inf).argmax(dim=1)
        for rows in torch.randperm(len(points), generator=draws).split(16):
            live = [part.clone().requires_grad_() for part in head]
            student = points[rows] @ live[0].T + live[1]
            said = student.argmax(dim=1)
            known = blocked[rows, said]
            hard = functional.cross_entropy(student, torch.where(known, reached[rows], said))
            scores = torch.where(known[:, None], taught[rows], student.detach())
            target = (scores.softmax(dim=1) / 4.0).softmax(dim=1)
            soft = (target * (target.log() - (student / 4.0).log_softmax(dim=1))).sum(dim=1).mean()
            slopes = torch.autograd.grad(0.5 * hard + 0.5 * 4.0**2 * soft, live)
            for part, speed, slope in zip(head, velocity, slopes, strict=True):
                speed.mul_(0.9).add_(slope)
                part.sub_(lr * speed)
            steps += 1
            left = (points @ head[0].T + head[1]).argmax(dim=1)
            if not bool(torch.isin(left, torch.tensor(forgotten)).any()):
                return steps
    return steps


@pytest.mark.parametrize(
    ("forgotten", "lr", "steps"),
    [([3], 0.05, 12), ([3], 0.1, 9), ([1, 3], 0.05, 12), ([1, 3], 0.1, 11)],
)
def test_training_over_several_epochs_is_the_literal_one(
    forgotten: list[int], lr: float, steps: int
) -> None:
    draws = torch.Generator().manual_seed(2)
    labels = torch.tensor(forgotten).repeat(50)[:50]
    model = Plain()
    with torch.no_grad():
        model.fc.weight.copy_(torch.randn(5, 6, generator=draws))
        model.fc.bias.copy_(torch.randn(5, generator=draws))
    head = [model.fc.weight.detach().clone(), model.fc.bias.detach().clone()]
    points = (torch.randn(50, 6, generator=draws) + 0.6 * head[0][labels]).float()
    assert literal_run(head, points.double(), labels, forgotten, lr=lr) == steps
    request = forget(model).classes(forgotten).on("cpu")
    request = request.using("lau", lr=lr, epochs=3, batch_size=16, attack_steps=3)
    data = DataLoader(TensorDataset(points, labels), batch_size=20)
    result = request.run(data, guard=None)
    assert result.history[-1]["steps"] == steps  # four an epoch
    assert 0.1 < result.before["forget"].accuracy < 0.9  # known and lost samples from the start
    assert torch.allclose(model.fc.weight, head[0], rtol=0.0, atol=1e-10)
    assert torch.allclose(model.fc.bias, head[1], rtol=0.0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [8, 9, 10])
def test_one_class_is_gone_from_the_weights_as_they_are_written(seed: int) -> None:
    """Steps so short that float32 weights have forgotten it before those that are written have."""
    model, inputs, labels = written_in_halves(seed)
    request = forget(model).classes([0]).using("lau", lr=1e-4, batch_size=8, epochs=60)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=100)
    result = request.on("cpu").run(loader, guard=None)
    assert "reached its target" in result.stopped_because
    assert not (model(inputs[labels == 0].bfloat16()).argmax(dim=1) == 0).any()


class Cosine(nn.Module):
    """Logits are cosines, so the head is not affine."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        logits = functional.normalize(features, dim=1) @ functional.normalize(self.weight, dim=1).T
        return 10 * logits


class Angular(nn.Module):
    """The body of a toy, and a head whose rows are the mean features of its classes."""

    def __init__(self, some: Toy) -> None:
        super().__init__()
        body = some.model.get_submodule("body").eval()
        self.body = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        images, labels = some.train.tensors
        with torch.no_grad():
            features = self.body(images)
        means = [features[labels == label].mean(dim=0) for label in range(4)]
        self.fc = Cosine(torch.stack(means) - features.mean(dim=0))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(images))
        return logits


def test_a_head_that_is_not_affine_is_attacked_with_the_step_that_was_asked_for() -> None:
    shares = {}
    for step in (1e-4, 0.6):
        some = toy("cnn")
        request = forget(Angular(some)).classes([3]).using("lau", attack_step=step, epochs=1)
        result = request.on("cpu").run(some.forget_loader(), guard=None)
        shares[step] = result.history[0]["failed_attacks"]
        assert result.before["forget"].accuracy > 0.9
    assert shares == {1e-4: pytest.approx(1.0, abs=0.1), 0.6: 0.0}


class Taught(LAU):
    """Keeps the teacher's logits of the first epoch."""

    seen: list[Tensor] = []  # noqa: RUF012  shared on purpose

    def start_epoch(self, run: Run) -> State:
        state = super().start_epoch(run)
        self.seen.append(state["teacher"].clone())
        return state


def literal_attack(
    start: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    labels: Tensor,
    gone: tuple[int, ...],
    step: float,
    steps: int,
) -> Tensor:
    """Climb the cross-entropy among the own and all kept classes, sample by sample."""
    made = []
    for one, label in zip(start, labels.tolist(), strict=True):
        kept = [k for k in range(4) if k not in gone and k != label]
        moved = one.clone()
        for _ in range(steps):
            moved.requires_grad_()
            logits = logits_of(moved[None])[:, [label, *kept]]
            loss = functional.cross_entropy(logits, torch.zeros(1, dtype=torch.long))
            moved = moved.detach() + step * torch.autograd.grad(loss, moved)[0].sign()
        made.append(moved)
    return torch.stack(made)


@pytest.mark.parametrize("gone", [(3,), (1, 3)])
def test_the_teacher_sees_what_a_literal_attack_on_images_or_on_features_makes(
    gone: tuple[int, ...],
) -> None:
    for attack in ("full", "partial"):
        some = toy("cnn")
        model = some.model if attack == "full" else Angular(some)
        twin = copy.deepcopy(model).eval().double()
        images, labels = some.train.tensors
        inside = torch.isin(labels, torch.tensor(gone))
        images, labels = images[inside][:20], labels[inside][:20]
        Taught.seen.clear()
        method = Taught(attack=attack, attack_steps=3, attack_step=0.1, epochs=1)
        request = forget(model).classes(gone).using(method).on("cpu")
        request.run(DataLoader(TensorDataset(images, labels), batch_size=7), guard=None)
        with torch.no_grad():
            start = images.double()
            start = start if attack == "full" else twin.get_submodule("body")(start)
        logits_of = twin if attack == "full" else twin.get_submodule("fc")
        attacked = literal_attack(start, logits_of, labels, gone, 0.1, 3)
        with torch.no_grad():
            expected, untouched = logits_of(attacked), logits_of(start)
        assert torch.allclose(Taught.seen[0].double(), expected, atol=1e-4)
        assert not torch.allclose(expected, untouched, atol=0.1)


class Noisy(TensorDataset):
    """Draws noise anew whenever a sample is read."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = (tensor[index] for tensor in self.tensors)
        return image + 0.01 * torch.randn_like(image), label


@pytest.mark.parametrize(("kind", "reads"), [(TensorDataset, 1), (Noisy, 4)])
def test_features_are_read_anew_in_every_epoch_of_a_loader_that_augments(
    kind: type[TensorDataset], reads: int
) -> None:
    some = toy("cnn")
    seen: list[int] = []
    body = some.model.get_submodule("body")
    hook = body.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    images, labels = some.train.tensors
    own = kind(images[labels == 3], labels[labels == 3])
    request = forget(some.model).classes([3]).using("lau", epochs=4, lr=1e-6).on("cpu")
    result = request.run(DataLoader(own, batch_size=60), guard=None)
    hook.remove()
    assert len(result.history) == 4
    assert seen.count(60) == reads


@functools.cache
def net_of_digits() -> tuple[nn.Module, TensorDataset, TensorDataset]:
    """Return a model that reads digits, what it was trained on, and unseen ones."""
    images, labels = shuffled_digits()
    seen, unseen = (TensorDataset(images[s], labels[s]) for s in (slice(1300), slice(1300, None)))
    return learned(*seen.tensors, seed=2, epochs=10, batch_size=64), seen, unseen


@pytest.mark.parametrize("label", range(10))
def test_each_digit_in_turn_is_forgotten_and_the_others_are_kept(label: int) -> None:
    trained, seen, unseen = net_of_digits()
    model = copy.deepcopy(trained)
    images, labels = unseen.tensors

    def right(own: bool) -> float:
        rows = (labels == label) == own
        with torch.no_grad():
            hits = model.eval()(images[rows]).argmax(dim=1) == labels[rows]
        return float(hits.double().mean())

    kept = right(own=False)
    request = forget(model).classes([label]).using("lau", batch_size=32).on("cpu")
    result = request.run(DataLoader(seen, batch_size=65), guard=None)
    assert kept > 0.97
    assert result.after["forget"].accuracy == 0.0
    assert right(own=True) <= 0.005
    assert right(own=False) >= kept - 0.005
