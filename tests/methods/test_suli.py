from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.losses import membership
from forgetkit.masked_targets import current_divergence
from forgetkit.method import Facts, Pair, build
from forgetkit.methods.pgu import PGU
from forgetkit.methods.suli import SULI
from forgetkit.result import Result
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Batch, Terms


def images_of(some: Toy, label: int = 3) -> Tensor:
    return some.train.tensors[0][some.train.tensors[1] == label]


def unlearn(some: Toy, **settings: object) -> Result:
    request = forget(some.model).classes([3]).using("suli", **settings).on("cpu")
    return request.run(some.forget_loader(), guard=None)


def literal_adjustment(logits: Tensor, epsilon: float, t: float) -> Tensor:
    probs = (logits / t).softmax(dim=1)
    rows = []
    for p in probs.tolist():
        rest = sum(p[:3])
        rows.append([*((1 - epsilon) * p[k] / rest for k in range(3)), epsilon])
    return torch.tensor(rows)


def literal_run(
    model: nn.Module,
    images: Tensor,
    *,
    layers: int,
    sweeps: int,
    lr: float,
    teacher: str,
    epsilon: float,
    t: float,
    inner: int,
) -> int:
    """The algorithm in plain words, with SGD; class 3 is forgotten. Returns the steps made."""

    def correct() -> int:
        with torch.no_grad():
            return int((model(images).argmax(dim=1) == 3).sum())

    model.eval()
    with torch.no_grad():
        start = model(images)
    surprise = [
        -sum(p * math.log(p) for p in row if p > 0) for row in start.softmax(dim=1).tolist()
    ]
    order = sorted(range(len(images)), key=lambda i: -surprise[i])
    size = math.ceil(len(images) / layers)
    parts = [order[first : first + size] for first in range(0, len(order), size)]
    accepted, steps = correct(), 0
    for _ in range(sweeps):
        for part in parts:
            remembered = {name: p.detach().clone() for name, p in model.state_dict().items()}
            with torch.no_grad():
                base = start[part] if teacher == "original" else model(images[part])
            target = literal_adjustment(base, epsilon, t)
            optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
            for _ in range(inner):
                log_probs = (model(images[part]) / t).log_softmax(dim=1)
                loss = functional.kl_div(log_probs, target, reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
            if correct() > accepted:
                model.load_state_dict(remembered)
            else:
                accepted = correct()
                if accepted == 0:
                    return steps
    return steps


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("teacher", ["original", "current"])
@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_run_is_the_literal_one(kind: str, teacher: str, inner: int, epsilon: float) -> None:
    some, twin = toy(kind), toy(kind).model
    settings = {"layers": 7, "lr": 0.004, "teacher": teacher, "epsilon": epsilon}
    result = unlearn(
        some, **settings, epochs=2, temperature=1.5, inner_steps=inner, optimizer="sgd"
    )
    steps = literal_run(
        twin, images_of(some), layers=7, sweeps=2, lr=0.004, teacher=teacher, epsilon=epsilon,
        t=1.5, inner=inner,
    )  # fmt: skip
    assert result.history[-1]["steps"] == steps
    for name, value in weights(some.model).items():
        assert torch.allclose(value, weights(twin)[name], atol=2e-5), name
    assert changed(weights(some.model), weights(toy(kind).model))


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("teacher", ["original", "current"])
def test_first_step_is_a_sign_step(kind: str, teacher: str) -> None:
    some, twin = toy(kind), toy(kind).model.eval()
    p = twin(images_of(some)).softmax(dim=1)[:, 3]
    (-torch.log1p(-p)).mean().backward()
    unlearn(some, layers=1, max_steps=1, lr=1e-3, teacher=teacher)
    after = weights(some.model)
    count = 0
    for name, parameter in twin.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        clear = gradient.abs() > 1e-5  # a smaller one is rounding in float32
        moved = (after[name] - parameter.detach())[clear]
        assert torch.allclose(moved, -1e-3 * gradient.sign()[clear], rtol=1e-2, atol=1e-7), name
        count += int(clear.sum())
    assert count > 300


def test_layers_are_read_from_the_most_to_the_least_uncertain() -> None:
    some = toy("cnn")
    images, twin = images_of(some), toy("cnn").model.eval()
    with torch.no_grad():
        log_probs = twin(images).log_softmax(dim=1)
    surprise = -(log_probs.exp() * log_probs).sum(dim=1)
    read: list[Tensor] = []
    first = next(m for m in some.model.modules() if isinstance(m, nn.Conv2d))

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and module.weight.requires_grad:
            read.append(inputs[0].detach())

    hook = first.register_forward_pre_hook(watch)
    unlearn(some, layers=4, epochs=1, lr=1e-6)
    hook.remove()
    layers = [batch for batch in read if len(batch) == 15]
    rows = [
        [int((images == image).flatten(1).all(dim=1).nonzero()[0]) for image in batch]
        for batch in layers[-4:]
    ]
    assert sorted(itertools.chain(*rows)) == list(range(60))
    for one, two in itertools.pairwise(rows):
        assert float(surprise[one].min()) >= float(surprise[two].max())


def rejected(max_steps: int) -> tuple[dict[str, Tensor], float]:
    some = toy("cnn")
    result = unlearn(
        some, layers=20, lr=0.005, epsilon=0.4, bn="train", max_steps=max_steps, epochs=1
    )
    return weights(some.model), result.history[-1].get("rejected_layers", 0.0)


def test_a_rejected_layer_leaves_weights_and_buffers_bit_identical() -> None:
    before, count = rejected(1)
    assert count == 0
    for steps in range(2, 20):
        after, count = rejected(steps)
        if count == 1:
            assert not changed(before, after)
            return
        assert changed(before, after)
        before = after
    raise AssertionError("no layer was rejected")


def test_sweeps_that_are_undone_as_a_whole_do_not_repeat_for_ever() -> None:
    some = toy("vit")
    request = forget(some.model).classes([1]).using("suli", lr=0.001, layers=2, epochs=60)
    result = request.on("cpu").run(some.forget_loader(1), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert any(row.get("rejected_layers", 0.0) == 2.0 for row in result.history)


@pytest.mark.parametrize("right", range(1, 11))
def test_a_layer_that_leaves_the_accuracy_as_it_was_is_kept(right: int) -> None:
    """Shares such as 0.9 are not numbers of float32: no rounding may pass for a rise."""
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
        model.bias.zero_()
    classes = torch.tensor([3] * right + [0] * (10 - right))
    loader = DataLoader(TensorDataset(torch.eye(4)[classes], torch.full((10,), 3)), batch_size=5)
    request = forget(model).classes([3]).using("suli", layers=2, epochs=2, lr=1e-6).on("cpu")
    for row in request.run(loader, guard=None).history:
        assert (row["forget_accuracy"], row.get("rejected_layers", 0.0)) == (right / 10, 0.0)


@pytest.mark.parametrize("teacher", ["original", "current"])
def test_with_one_layer_the_predicted_class_is_as_good_as_the_label(teacher: str) -> None:
    outcomes = []
    for removed in ("auto", "argmax"):
        some = toy("vit")
        predicted = some.model.eval()(images_of(some)).argmax(dim=1)
        assert bool((predicted == 3).all())
        unlearn(some, layers=1, max_steps=1, removed=removed, lr=1e-3, teacher=teacher)
        outcomes.append(weights(some.model))
    assert not changed(*outcomes)


def test_the_batch_size_only_cuts_a_layers_step() -> None:
    outcomes = []
    for size in (7, 256):
        some = toy("cnn")
        unlearn(some, layers=2, max_steps=2, batch_size=size, optimizer="sgd", lr=0.01)
        outcomes.append(weights(some.model))
    for name, value in outcomes[0].items():
        assert torch.allclose(value, outcomes[1][name], atol=1e-6), name


def test_number_of_steps_is_bounded() -> None:
    result = unlearn(toy("cnn"), layers=3, max_steps=5, lr=1e-6)
    assert result.history[-1]["steps"] == 5
    assert result.stopped_because == "max_steps = 5 steps done"


def test_settings_that_follow_the_request() -> None:
    classes = Facts("classes", 5000, retain_size=0, num_classes=10, transformer=False)
    single = Facts("instances", 64, retain_size=0, num_classes=10, transformer=False)
    assert SULI().tuned(classes) == SULI(lr=1e-4, layers=10)
    assert SULI().tuned(single) == SULI(lr=8e-5, layers=2)
    assert SULI(lr=1.0, layers=3).tuned(single) == SULI(lr=1.0, layers=3)
    code = build("suli", {"preset": "code"})
    assert code == SULI(
        lr=1e-4, chunk_size=500, batch_size=500, epochs=10, teacher="current", bn="train",
        max_steps=10**6,
    )  # fmt: skip
    assert build("suli", {"preset": "code_instances"}) == SULI(
        lr=8e-5, chunk_size=32, epochs=10, teacher="current", bn="train", removed="argmax",
        max_steps=10**6,
    )  # fmt: skip
    assert build("suli", {"preset": "paper"}) == SULI(
        lr=1e-4, layers=2, epochs=10, rollback=False, removed="label"
    )
    assert build("suli", {"preset": "paper_instances"}) == SULI(
        lr=8e-5, layers=2, epochs=10, rollback=False, removed="label"
    )


def test_the_code_preset_normalises_a_chunk_as_one_batch() -> None:
    some, sizes = toy("cnn"), []
    norm = next(module for module in some.model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.register_forward_hook(
        lambda module, inputs, _: sizes.append(len(inputs[0])) if module.training else None
    )
    images = some.train.tensors[0].repeat(4, 1, 1, 1)[:700]
    request = forget(some.model).instances().using("suli", preset="code", epochs=1).on("cpu")
    request.run([(images, torch.arange(700) % 4)], guard=None)
    assert sizes == [500, 200]


def test_single_samples_stop_at_the_accuracy_of_unseen_ones() -> None:
    some = toy("vit")
    request = forget(some.model).instances(range(40)).using("suli", lr=0.002, reference=0.8)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert 0.5 <= result.after["forget"].accuracy <= 0.8
    assert "rejected_layers" not in result.history[-1]


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_class_is_forgotten_and_the_rest_kept(kind: str, label: int) -> None:
    some = toy(kind)
    others = [other for other in range(4) if other != label]
    kept = some.accuracy(some.test, others)
    request = forget(some.model).classes([label]).using("suli", lr=0.001)
    result = request.on("cpu").run(some.forget_loader(label), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert some.accuracy(some.test, [label]) <= 0.1
    assert some.accuracy(some.test, others) >= kept - 0.05


def test_forty_sweeps_are_the_most_by_default() -> None:
    assert SULI().epochs == 40
    result = unlearn(toy("cnn"), layers=1, lr=1e-9)
    assert (len(result.history), result.history[-1]["steps"]) == (40, 40)
    assert "all 40 epochs done" in result.stopped_because


class Noisy(TensorDataset):
    """Draws noise anew whenever a sample is read."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = (tensor[index] for tensor in self.tensors)
        return image + torch.randn_like(image), label


class Watched(SULI):
    """Keeps the images of the first step and its loss."""

    seen: dict[str, Tensor] = {}  # noqa: RUF012  shared on purpose

    def loss(self, batch: Pair, run: Run) -> Terms:
        terms = super().loss(batch, run)
        assert batch.forget is not None
        assert isinstance(batch.forget.inputs, Tensor)
        if run.step == 0:
            self.seen.update(images=batch.forget.inputs, loss=terms["forget"].detach())
        return terms


def test_the_teacher_reads_the_images_that_the_student_reads_where_a_loader_augments() -> None:
    some = toy("cnn")
    literal = toy("cnn").model.eval()
    images, labels = some.train.tensors
    own = Noisy(images[labels == 3], labels[labels == 3])
    method = Watched(layers=1, epochs=1, batch_size=60)
    request = forget(some.model).classes([3]).using(method).on("cpu")
    request.run(DataLoader(own, batch_size=60), guard=None)
    with torch.no_grad():
        known = literal(Watched.seen["images"]).double().softmax(dim=1)[:, 3]
    # the student is the teacher still, so only the share of the class that goes is between them
    assert float(Watched.seen["loss"]) == pytest.approx(-float((1 - known).log().mean()), rel=1e-4)


def test_the_loss_of_a_layer_is_the_first_term_of_pgu() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (40,), generator=generator)
    room = 1 - logits.softmax(dim=1).gather(1, labels[:, None]).max()  # PGU adds 1e-6 to it
    batch = Batch(torch.zeros(40, 1), labels, torch.arange(40), 40)
    ours, theirs = (logits.float().requires_grad_() for _ in range(2))
    run: Any = SimpleNamespace(
        state={}, parameters={}, masks={}, num_classes=5, logits=lambda _: theirs,
        goal=SimpleNamespace(kind="classes"),
    )  # fmt: skip
    terms = PGU(epsilon=1e-6, entropy_weight=0.0).loss(Pair(batch, None), run)
    values = (current_divergence(ours, membership(labels, 5)), terms["forget"] + terms["entropy"])
    within = 2e-6 / float(room)
    assert float(room) > 0.01
    assert abs(float((values[0] - values[1]).detach())) <= within
    leaves = zip(values, (ours, theirs), strict=True)
    first, second = (torch.autograd.grad(value, leaf)[0] for value, leaf in leaves)
    assert float((first - second).abs().max()) <= within / 40
    assert float(first.abs().max()) > 100 * within / 40
