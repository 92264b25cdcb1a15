from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import Result, forget
from forgetkit.engine.run import Run
from forgetkit.guided import guided_images, logit_distance, objective, ramp, widened
from forgetkit.losses import accuracy, per_sample_loss
from forgetkit.membership import final_score, forgetting_score
from forgetkit.method import Pair, build
from forgetkit.methods import gli
from forgetkit.methods.gli import GuidedLossIncreasing
from forgetkit.testing import Toy, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Terms

QUICK = {"batch_size": 16, "bounds": (-4.0, 4.0), "lr": 0.02, "max_batches": 4}


def run(some: Toy, *, validate: bool = False, **settings: object) -> Result:
    asked = forget(some.model).instances(range(40)).using("gli", **{**QUICK, **settings}).on("cpu")
    if validate:
        asked = asked.validate(DataLoader(some.test, batch_size=64))
    return asked.run(some.loader(), guard=None)


def linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    model = nn.Linear(12, 4).double()
    return (
        model,
        torch.rand(8, 12).double(),
        torch.arange(8) % 4,
        model(torch.rand(8, 12).double()).detach(),
    )


def moved(model: nn.Module, images: Tensor, labels: Tensor, others: Tensor, w: float) -> Tensor:
    return guided_images(
        images, labels, others, model, weight=w, distance="l2", steps=1,
        step=torch.tensor(1e-3), low=torch.tensor(-9.0), high=torch.tensor(9.0),
    )  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_one_inner_step_raises_the_objective(weight: float, distance: str) -> None:
    model, images, labels, others = linear()
    after = guided_images(
        images, labels, others, model, weight=weight, distance=distance, steps=1,
        step=torch.tensor(1e-4), low=torch.tensor(-9.0), high=torch.tensor(9.0),
    )  # fmt: skip

    def total(x: Tensor) -> float:
        parts = objective(model(x), labels, others, weight=weight, distance=distance)
        return parts[0].item() + parts[1].item()

    assert total(after) > total(images)


def test_both_ends_of_the_weight() -> None:
    model, images, labels, others = linear()
    free = moved(model, images, labels, others, 0.0)
    assert logit_distance(model(free), others, "l2") > logit_distance(model(images), others, "l2")
    bound = moved(model, images, labels, others, 1e6)
    before = functional.cross_entropy(model(images), labels)
    assert functional.cross_entropy(model(bound), labels) < before


def test_noise_stays_within_its_reach_and_the_bounds() -> None:
    model, images, labels, others = linear()
    low, high = torch.tensor(0.1), torch.tensor(0.9)
    images = images.clamp(0.1, 0.9)
    after = guided_images(
        images, labels, others, model, weight=1.0, distance="l2", steps=3,
        step=torch.tensor(0.02), low=low, high=high,
    )  # fmt: skip
    assert float((after - images).detach().abs().max()) <= 3 * 0.02 + 1e-6
    assert float((after - images).detach().abs().max()) > 0.02
    assert float(after.min()) >= 0.1
    assert float(after.max()) <= 0.9
    assert not after.requires_grad


def test_distances_by_hand() -> None:
    left, right = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[0.0, 0.0], [0.0, -1.0]])
    assert float(logit_distance(left, right, "l2")) == pytest.approx((1 + 4 + 0 + 16) / 4)
    assert float(logit_distance(left, right, "l1")) == pytest.approx((1 + 2 + 0 + 4) / 4)
    assert float(logit_distance(left, -left, "cosine")) == pytest.approx(1.0)
    assert float(logit_distance(left, 3 * left, "cosine")) == pytest.approx(-1.0)
    large = torch.full((1, 2), 300.0, dtype=torch.float16)
    assert float(logit_distance(large, -large, "l2")) == pytest.approx(360000.0)


def test_ramp() -> None:
    assert ramp(0, 5, 200.0, 1000.0) == 200.0
    assert ramp(2, 5, 200.0, 1000.0) == 600.0
    assert ramp(4, 5, 200.0, 1000.0) == 1000.0
    assert ramp(0, 1, 200.0, 1000.0) == 200.0


def test_one_label_is_binary_cross_entropy() -> None:
    logits, targets = torch.randn(6, 1), torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0], [0.0]])
    apart, task = objective(logits, targets, torch.zeros(6, 1), weight=3.0, distance="l2")
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert float(task) == pytest.approx(-3.0 * float(expected), rel=1e-5)
    two = torch.cat([torch.zeros(6, 1), logits], dim=1)  # the same as two classes
    binary = objective(two, targets[:, 0].long(), torch.zeros(6, 2), weight=3.0, distance="l2")[1]
    assert float(task) == pytest.approx(float(binary), rel=1e-5)
    assert float(apart) == pytest.approx(float(logits.square().mean()), rel=1e-5)


def test_a_range_is_widened_by_what_it_does_not_hold() -> None:
    low, high = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    images = torch.full((3, 2, 4, 4), 0.5)
    images[1, 1, 2, 2], images[0, 0, 0, 0] = 2.0, -1.0
    lowest, highest = widened(low, high, images)
    assert lowest.flatten().tolist() == [-1.0, 0.0]
    assert highest.flatten().tolist() == [1.0, 2.0]


def twin(some: Toy, *, batches: int, steps: int, share: float, w: tuple[float, float]) -> nn.Module:
    """Compute the run literally: perturb, step, next batch."""
    model = copy.deepcopy(some.model).eval()
    images, labels = some.train.tensors
    x_f, x_r, y_r = images[:40], images[40:], labels[40:]
    draws = Generator().manual_seed(0)
    order, waiting = torch.randperm(200, generator=draws).split(16), list[Tensor]()
    for b in range(batches):
        rows = order[b]
        waiting = waiting or list(torch.randperm(40, generator=draws).split(16))
        forget_rows = waiting.pop(0)
        x, y = x_r[rows], y_r[rows]
        g = model(torch.stack([x_f[forget_rows[i % len(forget_rows)]] for i in range(16)])).detach()
        weight = w[0] + (w[1] - w[0]) * b / (13 - 1)
        eta = torch.zeros_like(x)
        for _ in range(steps):
            eta = eta.detach().requires_grad_()
            z = model((x + eta).clamp(-4.0, 4.0))
            j = ((z - g) ** 2).mean() - weight * functional.cross_entropy(z, y)
            (gradient,) = torch.autograd.grad(j, eta)
            eta = (eta + share * 8.0 * gradient.sign()).detach()
        loss = functional.cross_entropy(model((x + eta).clamp(-4.0, 4.0)), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(0.02 * slope)
    return model


def test_run_equals_the_literal_algorithm() -> None:
    some = toy("cnn")
    expected = twin(some, batches=4, steps=2, share=0.01, w=(2.0, 5.0))
    result = run(some, weight_start=2.0, weight_end=5.0)
    assert result.history[-1]["steps"] == 4
    for (name, ours), theirs in zip(
        some.model.named_parameters(), expected.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_without_noise_it_is_fine_tuning_bit_for_bit() -> None:
    outcomes = []
    for slug in ("gli", "finetune"):
        some = toy("cnn")
        for module in some.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        common = {"batch_size": 16, "lr": 0.02, "momentum": 0.0, "epochs": 1, "bn": "frozen"}
        own = {"noise_steps": 0, "max_batches": 1000} if slug == "gli" else {}
        forget(some.model).instances(range(40)).using(slug, **common, **own).on("cpu").run(
            some.loader(), guard=None
        )
        outcomes.append(weights(some.model))
    assert changed(*outcomes) == []


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_inner_loop_leaves_weights_buffers_and_gradients(
    bn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = toy("cnn")
    seen = 0

    def spied(*args: object, **kwargs: object) -> Tensor:
        nonlocal seen
        before = {name: value.clone() for name, value in weights(some.model).items()}
        found: Tensor = guided_images(*args, **kwargs)  # type: ignore[arg-type]  # passed through
        assert changed(before, weights(some.model)) == []
        assert all(parameter.grad is None for parameter in some.model.parameters())
        seen += 1
        return found

    monkeypatch.setattr(gli, "guided_images", spied)
    start = {name: value.clone() for name, value in some.model.named_buffers()}
    run(some, bn=bn)
    assert seen == 4
    kept = all(torch.equal(value, start[name]) for name, value in some.model.named_buffers())
    assert kept == (bn == "frozen")


def test_forget_images_act_through_the_noise_alone() -> None:
    same = {}
    for weight in (0.1, 1e9):
        outcomes = []
        for wiped in (False, True):
            some = toy("cnn")
            images, labels = some.train.tensors
            images = images.clone()
            if wiped:
                images[:40] = images[:40].flip(-1) * 0.5
            some = Toy(some.model, TensorDataset(images, labels), some.test)
            run(some, weight_start=weight, weight_end=weight)
            outcomes.append(weights(some.model))
        same[weight] = changed(*outcomes) == []
    assert same == {0.1: False, 1e9: True}


def test_labels_of_the_forget_set_are_not_used() -> None:
    outcomes = []
    for shift in (0, 1):
        some = toy("cnn")
        images, labels = some.train.tensors
        labels = labels.clone()
        labels[:40] = (labels[:40] + shift) % 4
        some = Toy(some.model, TensorDataset(images, labels), some.test)
        run(some, weight_start=1.0)
        outcomes.append(weights(some.model))
    assert changed(*outcomes) == []


class Normalised(nn.Module):
    """A model whose inputs are pixels times 5 plus 3."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model((inputs - 3.0) / 5.0)
        return logits


def test_noise_does_not_depend_on_how_inputs_are_normalised() -> None:
    plain, other = toy("cnn"), toy("cnn")
    wrapped = Normalised(other.model)
    images, labels = other.train.tensors
    scaled = Toy(wrapped, TensorDataset(images * 5.0 + 3.0, labels), other.test)
    for some in (plain, scaled):
        run(some, bounds=None, weight_start=1.0, weight_end=1.0, noise_step=0.05)
    for left, right in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-3)


def test_patience_ends_the_run_and_the_best_state_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = toy("cnn")
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.6, 0.9])
    states = []

    def scripted(_: object) -> float:
        states.append({name: value.clone() for name, value in weights(some.model).items()})
        return next(scores)

    monkeypatch.setattr(gli, "_final_score", scripted)
    result = run(some, validate=True, max_batches=2, check_every=2)
    assert len(states) == 5
    assert result.history[-1]["steps"] == 10
    assert "did not rise in 3 checks" in result.stopped_because
    assert changed(states[1], weights(some.model)) == []
    assert changed(states[1], states[4]) != []
    assert "0.7000" in result.notes[-1]
    assert "after 4 batches" in result.notes[-1]


@pytest.mark.parametrize("check_every", [5, None])
def test_the_last_state_is_scored_too(
    check_every: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[float] = []

    def rising(_: object) -> float:
        scores.append(len(scores) / 10)
        return scores[-1]

    monkeypatch.setattr(gli, "_final_score", rising)
    result = run(toy("cnn"), validate=True, check_every=check_every)
    assert result.history[-1]["steps"] == 13
    assert len(scores) == (1 if check_every is None else 3)
    assert "after 13 batches" in result.notes[-1]


def test_score_is_that_of_two_disjoint_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    some = toy("cnn")
    real, scores = gli._final_score, []

    def spied(run: object) -> float:
        scores.append(real(run))  # type: ignore[arg-type]  # passed through
        return scores[-1]

    monkeypatch.setattr(gli, "_final_score", spied)
    run(some, validate=True, check_every=6, patience=9)
    model = some.model.eval()
    images, labels = some.train.tensors
    test_images, test_labels = some.test.tensors
    with torch.no_grad():
        ours = per_sample_loss(model(images[:40]), labels[:40])
        unseen = per_sample_loss(model(test_images[1::2]), test_labels[1::2])
        right = accuracy(model(test_images[0::2]), test_labels[0::2]).mean()
    expected = final_score(float(right), forgetting_score(ours, unseen))
    assert max(scores) == pytest.approx(expected, abs=1e-5)
    assert len(scores) == 3


def test_too_few_validation_samples_are_said() -> None:
    some = toy("cnn")
    images, labels = some.test.tensors
    few = DataLoader(TensorDataset(images[:19], labels[:19]), batch_size=8)
    asked = forget(some.model).instances(range(40)).using("gli", **QUICK).validate(few).on("cpu")
    result = asked.run(some.loader(), guard=None)
    assert result.history[-1]["steps"] == 4
    assert "ends after 4 batches" in result.notes[0]


def test_presets() -> None:
    assert build("gli", {"preset": "paper"}) == build("gli", {"bounds": (0.0, 1.0)})
    binary = build("gli", {"preset": "mucac_binary"}).hyperparameters()
    assert (binary["noise_steps"], binary["weight_start"], binary["weight_end"]) == (5, 800, 12000)


class Named(nn.Module):
    """A model that is called with named tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, seed: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values + 0 * seed[:, None, None, None])
        return logits


def test_named_inputs_are_moved_by_their_pixels_alone() -> None:
    plain, other = toy("cnn"), toy("cnn")
    run(plain)
    images, labels = other.train.tensors
    batches = [
        {"pixel_values": some, "seed": torch.zeros(len(some), dtype=torch.int64), "labels": own}
        for some, own in zip(images.split(32), labels.split(32), strict=True)
    ]
    forget(Named(other.model)).instances(range(40)).using("gli", **QUICK).on("cpu").run(
        batches, guard=None
    )
    assert changed(weights(plain.model), weights(other.model)) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_inputs_of_other_types(dtype: torch.dtype) -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    data = TensorDataset(images.half().to(dtype), labels)
    before = weights(some.model)
    run(Toy(some.model, data, some.test), bounds=None)
    assert changed(before, weights(some.model))
    reference = toy("cnn")
    run(Toy(reference.model, TensorDataset(images.half().float(), labels), some.test), bounds=None)
    for left, right in zip(some.model.parameters(), reference.model.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("validate", [True, False])
def test_nothing_is_measured_between_batches_beyond_the_score(
    validate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: Run) -> float:
        raise AssertionError("D_f was read for a check that nothing depends on")

    monkeypatch.setattr(Run, "forget_accuracy", forbidden)
    row = run(toy("cnn"), validate=validate).history[-1]
    assert ("final_score" in row) == validate
    assert row["steps"] >= 4


def test_accumulating_gives_the_step_of_the_whole_batch() -> None:
    models = []
    for parts in (1, 2):
        some = toy("cnn")
        asked = forget(some.model).instances(range(40)).on("cpu", accumulate=parts)
        asked = asked.using("gli", **{**QUICK, "max_batches": 2, "weight_start": 1.0})
        asked.run(some.loader(), guard=None)
        models.append(some.model)
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_the_history_has_both_parts_of_the_objective_and_rows_are_paired_by_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the last batch, which has fewer retained images than forgotten ones."""
    some = toy("cnn")
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def watched(images: Tensor, labels: Tensor, others: Tensor, *args: Any, **kw: Any) -> Tensor:  # noqa: ANN401
        seen.append((guided_images(images, labels, others, *args, **kw), labels, others, pairs[-1]))
        return seen[-1][0]

    pairs: list[Tensor] = []

    class Watched(GuidedLossIncreasing):
        def loss(self, batch: Pair, run: Run) -> Terms:
            assert batch.forget is not None
            assert isinstance(batch.forget.inputs, Tensor)
            pairs.append(batch.forget.inputs)
            return super().loss(batch, run)

    monkeypatch.setattr(gli, "guided_images", watched)
    method = Watched(
        batch_size=48, bounds=(-4.0, 4.0), lr=0.0, weight_start=2.0, weight_end=6.0,
        max_batches=100,
    )  # fmt: skip
    request = forget(some.model).instances(range(40)).using(method).on("cpu")
    row = request.run(some.loader(), guard=None).history[-1]
    assert [(len(labels), len(pair)) for _, labels, _, pair in seen] == [(48, 40)] * 4 + [(8, 40)]
    model = some.model.eval()
    with torch.no_grad():
        for _, labels, others, pair in seen:
            rows = [number % 40 for number in range(len(labels))]
            assert torch.allclose(others, model(pair)[rows], atol=1e-5)
        made, labels, others, _ = seen[-1]
        logits = model(made)
    task = functional.cross_entropy(logits, labels)
    assert row["distance"] == pytest.approx(float((logits - others).square().mean()), rel=1e-4)
    assert row["weighted_task"] == pytest.approx(6.0 * float(task), rel=1e-4)
