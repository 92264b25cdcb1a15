from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

from forgetkit import forget
from forgetkit.distillation import divergences
from forgetkit.engine.run import Run
from forgetkit.method import Facts, GoalKind, Pair, Pass, build
from forgetkit.methods.scrub import Scrub
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import weights
from forgetkit.types import Terms


class Spy(Scrub):
    """Writes down each step: epoch, pass, set, step size, terms."""

    steps_seen: ClassVar[list[tuple[int, str, str, float, dict[str, float]]]] = []

    def loss(self, batch: Pair, run: Run) -> Terms:
        terms = super().loss(batch, run)
        which = "retain" if batch.forget is None else "forget"
        numbers = {name: float(term.detach()) for name, term in terms.items()}
        self.steps_seen.append((run.epoch, run.phase, which, self.rate(run) or 0.0, numbers))
        return terms


def spied(
    kind: str = "cnn", **settings: object
) -> list[tuple[int, str, str, float, dict[str, float]]]:
    Spy.steps_seen.clear()
    some = toy(kind)
    method = Spy(**{"batch_size": 64, "forget_batch_size": 16, **settings})  # type: ignore[arg-type]  # by name
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    return list(Spy.steps_seen)


def test_max_first_min_last() -> None:
    steps = spied(epochs=3, max_epochs=2)
    for epoch in range(3):
        passes = [(phase, which) for at, phase, which, _, _ in steps if at == epoch]
        most, least = [("max", "forget")] * 4, [("min", "retain")] * 3  # 60 by 16, 180 by 64
        assert passes == (most + least if epoch < 2 else least)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [1e-2] * 10),
        ("3-5-9", [1e-2] * 3 + [1e-3] * 2 + [1e-4] * 4 + [1e-5]),
        ("5-8-9", [1e-2] * 5 + [1e-3] * 3 + [1e-4] + [1e-5]),
    ],
)
def test_step_size_falls_after_the_milestones(decay: str, expected: list[float]) -> None:
    steps = spied(epochs=10, max_epochs=0, decay=decay, lr=1e-2, batch_size=180)
    assert [rate for _, _, _, rate, _ in steps] == pytest.approx(expected)


@pytest.mark.parametrize("kind", TOYS)
def test_first_max_pass_moves_nothing(kind: str) -> None:
    """Student and teacher are equal, so with plain SGD there is nothing to follow."""
    moved: list[float] = []

    class Stops(Scrub):
        def passed(self, run: Run) -> str | None:
            started = dict(run.original.named_parameters())
            moved.extend(float((p - started[n]).abs().max()) for n, p in run.parameters.items())
            return f"after the pass {run.phase}"

    some = toy(kind)
    method = Stops(epochs=1, weight_decay=0.0, forget_batch_size=16)
    result = forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert result.stopped_because == "after the pass max"
    assert max(moved) < 1e-8


def test_adam_gets_a_larger_epsilon_in_the_first_max_pass_only() -> None:
    passes: dict[int, list[Pass]] = {}

    class Asked(Scrub):
        def passes(self, run: Run) -> list[Pass]:
            passes[run.epoch] = list(super().passes(run))
            return passes[run.epoch]

    some = toy("cnn")
    method = Asked(epochs=2, max_epochs=2, optimizer="adam", lr=1e-4)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert [one.eps for one in passes[0]] == [1e-6, None]
    assert [one.eps for one in passes[1]] == [None, None]


def test_the_optimiser_steps_with_the_epsilon_of_its_pass() -> None:
    toy("cnn")  # trained before the steps are watched
    seen: list[float] = []

    def watch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.extend(group["eps"] for group in optimizer.param_groups)

    watched = register_optimizer_step_pre_hook(watch)
    try:
        steps = spied(epochs=2, max_epochs=2, optimizer="adam", lr=1e-4)
    finally:
        watched.remove()
    wanted = [1e-6 if (epoch, phase) == (0, "max") else 1e-8 for epoch, phase, *_ in steps]
    assert seen == wanted
    assert wanted.count(1e-6) == 4  # 60 forget samples by 16


@pytest.mark.parametrize(
    ("optimizer", "max_epochs", "notes"), [("adam", 2, 1), ("sgd", 2, 0), ("adam", 0, 0)]
)
def test_a_note_tells_of_the_larger_epsilon(optimizer: str, max_epochs: int, notes: int) -> None:
    some = toy("cnn")
    method = Scrub(epochs=2, max_epochs=max_epochs, optimizer=optimizer, lr=1e-4)
    request = forget(some.model).classes([3]).using(method).on("cpu")
    result = request.run(some.loader(), guard=None)
    told = [note for note in result.notes if "first max pass" in note]
    assert len(told) == notes
    assert all("epsilon of adam is 1e-06" in note for note in told)


def literal_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    wanted, found = (teacher / temperature).exp(), (student / temperature).exp()
    wanted, found = wanted / wanted.sum(1, keepdim=True), found / found.sum(1, keepdim=True)
    return temperature**2 * (wanted * (wanted / found).log()).sum(dim=1).mean()


@pytest.mark.parametrize(("kind", "lr"), [("cnn", 0.1), ("vit", 0.5)])
def test_two_epochs_equal_their_passes_written_out(kind: str, lr: float) -> None:
    some, other, teacher = toy(kind), toy(kind), toy(kind)
    images, labels = some.train.tensors
    lost, kept = labels == 3, labels != 3
    method = Scrub(
        epochs=2, max_epochs=2, label_weight=0.7, distill_weight=0.3, temperature=2.0, lr=lr,
        momentum=0.9, weight_decay=0.01, max_norm=None, batch_size=200, forget_batch_size=200,
    )  # fmt: skip
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    student = other.model.eval()
    teacher.model.eval()
    parameters = list(student.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]  # of both passes and both epochs

    def step(loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, parameters)
        for p, g, momentum in zip(parameters, gradients, momenta, strict=True):
            momentum.mul_(0.9).add_(g + 0.01 * p.data)
            p.data -= lr * momentum

    with torch.no_grad():
        far, near = teacher.model(images[lost]), teacher.model(images[kept])
    for _ in range(2):
        step(-literal_kl(far, student(images[lost]), 2.0))
        logits = student(images[kept])
        hard = functional.cross_entropy(logits, labels[kept])
        step(0.7 * hard + 0.3 * literal_kl(near, logits, 2.0))
    before = weights(teacher.model)
    for (name, ours), theirs in zip(
        some.model.named_parameters(), student.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=2e-5), name
    assert any(
        float((p.detach() - before[n]).abs().max()) > 2e-4 for n, p in some.model.named_parameters()
    )


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("classes", (0.99, 0.001, 2, 3, 4.0, 512, 256)),
        ("instances", (1.0, 0.5, 3, 5, 4.0, 16, 32)),
        ("depoison", (1.0, 0.01, 2, 10, 2.0, 32, 32)),
    ],
)
def test_defaults_follow_the_goal(goal: GoalKind, expected: tuple[float, ...]) -> None:
    facts = Facts(goal, 100, 1000, num_classes=10, transformer=False)
    tuned = Scrub().tuned(facts)
    found = (
        tuned.label_weight, tuned.distill_weight, tuned.max_epochs, tuned.epochs,
        tuned.temperature, tuned.forget_batch_size, tuned.batch_size,
    )  # fmt: skip
    assert found == expected
    assert (tuned.optimizer, tuned.lr, tuned.momentum, tuned.weight_decay) == (
        "sgd",
        5e-4,
        0.9,
        5e-4,
    )
    given = Scrub(epochs=7, temperature=1.0, max_epochs=0).tuned(facts)
    assert (given.epochs, given.temperature, given.max_epochs) == (7, 1.0, 0)
    assert given.batch_size == expected[-1]


def test_small_preset_is_the_published_row() -> None:
    small = build("scrub", {"preset": "small"})
    wanted = {
        "optimizer": "adam", "lr": 5e-4, "weight_decay": 0.1, "label_weight": 1.0,
        "distill_weight": 0.5, "max_epochs": 3, "epochs": 10, "temperature": 2.0,
        "forget_batch_size": 64, "batch_size": 32, "decay": "5-8-9",
    }  # fmt: skip
    assert {name: dataclasses.asdict(small)[name] for name in wanted} == wanted


def test_the_history_counts_what_was_too_far_from_the_teacher() -> None:
    far: dict[int, int] = {}

    class Counts(Scrub):
        def loss(self, batch: Pair, run: Run) -> Terms:
            if batch.forget is not None:
                teacher, student = run.original_logits(batch.forget), run.logits(batch.forget)
                beyond = divergences(teacher, student.detach(), 1.0) > 2 * math.log(4) + 5
                far[run.epoch] = far.get(run.epoch, 0) + int(beyond.sum())
            return super().loss(batch, run)

    some = toy("cnn")
    method = Counts(
        epochs=3, max_epochs=3, lr=0.2, temperature=1.0, max_norm=1.0, batch_size=32,
        forget_batch_size=16,
    )  # fmt: skip
    request = forget(some.model).classes([3]).using(method).on("cpu")
    history = request.run(some.loader(), guard=None).history
    assert [row["capped"] for row in history] == [far[0], far[1], far[2]]
    assert sum(far.values()) > 0
    free = dataclasses.replace(method, cap=False)
    some = toy("cnn")
    request = forget(some.model).classes([3]).using(free).on("cpu")
    assert all("capped" not in row for row in request.run(some.loader(), guard=None).history)
