"""ADV, ADV+IMP and CORRECT: what the method must hold, against plain twins."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from small_digits import learned, shuffled_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import adversarial, forget
from forgetkit.adversarial import AdversarialSet, adversarial_set
from forgetkit.adversarial_recipe import most_rounds
from forgetkit.choosing import effort
from forgetkit.curvature import mean_absolute_gradients
from forgetkit.draws import uniform
from forgetkit.engine.run import Run
from forgetkit.errors import BadTarget
from forgetkit.losses import blocked_classes
from forgetkit.method import Facts, GoalKind, Method, Pair, State, build, find
from forgetkit.methods.adv import Adv
from forgetkit.methods.adv_imp import AdvImp
from forgetkit.methods.correct import Correct
from forgetkit.methods.neggrad import NegGrad
from forgetkit.relabelling import drawn_classes
from forgetkit.result import Result
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import changed, weights
from forgetkit.types import Batch, Terms

QUICK: dict[str, Any] = {
    "adversaries": 2, "attack_steps": 4, "attack_radius": 0.5, "lr": 0.05, "epochs": 2,
    "batch_size": 40, "forget_batch_size": 20,
}  # fmt: skip


def run_on_samples(method: Method, kind: str = "cnn", count: int = 40) -> tuple[nn.Module, Result]:
    some = toy(kind)
    request = forget(some.model).seed(0).instances(range(count)).using(method).on("cpu")
    return some.model, request.run(some.loader(), guard=None)


def corrections(count: int = 40) -> dict[int, int]:
    return {position: (position + 1) % 4 for position in range(count)}


@pytest.mark.parametrize("kind", TOYS)
def test_without_adversaries_adv_is_neggrad_bit_for_bit(kind: str) -> None:
    shared: dict[str, Any] = {"lr": 0.02, "epochs": 3, "max_norm": 5.0, "check_every": 1}
    adv = Adv(adversaries=0, forget_batch_size=16, **shared)
    ours, _ = run_on_samples(adv, kind)
    theirs, _ = run_on_samples(NegGrad(batch_size=16, **shared), kind)
    assert changed(weights(ours), weights(theirs)) == []
    assert changed(weights(ours), weights(toy(kind).model)) != []


def test_without_adversaries_adv_is_correct_bit_for_bit() -> None:
    outcomes = []
    shared: dict[str, Any] = {"lr": 0.02, "epochs": 2, "check_every": 1}
    for method in (
        Adv(adversaries=0, forget_batch_size=16, **shared),
        Correct(batch_size=16, **shared),
    ):
        some = toy("cnn")
        request = forget(some.model).seed(0).relabel(corrections()).using(method).on("cpu")
        request.run(some.loader(), guard=None)
        outcomes.append(weights(some.model))
    assert changed(*outcomes) == []


def test_without_a_pull_adv_imp_is_adv_bit_for_bit() -> None:
    ours, _ = run_on_samples(AdvImp(importance_weight=0.0, **QUICK))
    theirs, _ = run_on_samples(Adv(**QUICK))
    assert changed(weights(ours), weights(theirs)) == []


def test_the_pull_keeps_the_weights_nearer() -> None:
    start = weights(toy("cnn").model)
    moved = {}
    for strength in (0.0, 20.0):
        method = AdvImp(importance_weight=strength, **{**QUICK, "epochs": 4})
        after = weights(run_on_samples(method)[0])
        moved[strength] = sum(float((after[n] - start[n]).square().sum()) for n in start)
    assert moved[20.0] < moved[0.0]


class Watched(AdvImp):
    """Keeps what setup returned and the terms of the first step."""

    seen: dict[str, Tensor] = {}  # noqa: RUF012  shared on purpose
    terms: dict[str, float] = {}  # noqa: RUF012  shared on purpose

    def setup(self, run: Run) -> State:
        state = super().setup(run)
        self.seen.clear()
        self.seen.update(state)
        self.terms.clear()
        return state

    def loss(self, batch, run):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        terms = super().loss(batch, run)
        if not self.terms:
            self.terms.update({name: float(value.detach()) for name, value in terms.items()})
        return terms


def test_first_step_follows_the_literal_objective() -> None:
    """One step over everything: weights by size, ascent on D_f, CE on D_adv, no pull yet."""
    literal = {"balance": "size", "forgotten": "push", "bn": "frozen"}
    method = Watched(**{**QUICK, **literal, "epochs": 1, "batch_size": 80, "forget_batch_size": 40})
    run_on_samples(method)
    some = toy("cnn")
    model = some.model.eval()
    images, labels = (tensor[:40] for tensor in some.train.tensors)
    made, targets = Watched.seen["attacked inputs"], Watched.seen["targets"]
    assert made.shape == (80, 1, 8, 8)
    with torch.no_grad():
        ascent = -float(functional.cross_entropy(model(images), labels))
        descent = float(functional.cross_entropy(model(made), targets))
    assert Watched.terms["forget"] == pytest.approx(40 / 120 * ascent, rel=1e-4)
    assert Watched.terms["retain_adversarial"] == pytest.approx(80 / 120 * descent, rel=1e-4)
    assert Watched.terms["forget_pull"] == 0.0


def test_the_set_is_made_from_the_incoming_model() -> None:
    """Literal twin: the first image's first adversarial copy, in unit space."""
    run_on_samples(Watched(**{**QUICK, "epochs": 1}))
    some = toy("cnn")
    model = some.model.eval().requires_grad_(requires_grad=False)
    images, labels = (tensor[:40] for tensor in some.train.tensors)
    low, high = images.min(), images.max()
    x = (images[0] - low) / (high - low)
    noise = uniform(0, "adversarial start", torch.arange(64)).float().view(1, 8, 8)
    delta = noise - x
    delta = delta * min(1.0, 0.5 / float(delta.norm()))
    target = Watched.seen["targets"][:1]
    assert int(target) != int(labels[0])
    for _ in range(4):
        delta.requires_grad_()
        logits = model(low + (x + delta)[None] * (high - low))
        (g,) = torch.autograd.grad(functional.cross_entropy(logits, target), delta)
        delta = (delta.detach() - 0.1 * g / g.norm() + x).clamp(0, 1) - x
        delta = delta * min(1.0, 0.5 / float(delta.norm()))
    expected = low + (x + delta) * (high - low)
    assert torch.allclose(Watched.seen["attacked inputs"][0], expected, atol=1e-4)


@pytest.mark.parametrize("label", range(4))
def test_targets_avoid_the_own_and_forgotten_classes(label: int) -> None:
    """Also for y = K // 2, and when a class is forgotten."""
    some = toy("cnn")
    method = Watched(**{**QUICK, "epochs": 1, "adversaries": 5})
    request = forget(some.model).classes([label]).using(method).on("cpu")
    request.run(some.loader(), guard=None)
    targets = Watched.seen["targets"]
    assert len(targets) == 60 * 5
    assert set(targets.tolist()) == {0, 1, 2, 3} - {label}
    assert (targets.view(60, 5) != targets.view(60, 5)[:, :1]).any()


def test_importance_is_that_of_single_backward_passes() -> None:
    for kind in TOYS:
        run_on_samples(Watched(**{**QUICK, "epochs": 1}), kind, count=10)
        some = toy(kind)
        model = some.model.eval()
        images = some.train.tensors[0][:10]
        sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for row in range(10):
            model.zero_grad()
            model(images[row : row + 1]).square().sum().backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                sums[name] += parameter.grad.abs() / 10
        for name, value in sums.items():
            width = value.max() - value.min()
            expected = 1 - (value - value.min()) / width if width > 0 else torch.ones_like(value)
            held = Watched.seen[f"held.{name}"]
            assert torch.allclose(held, expected, atol=1e-4), (kind, name)
            assert 0.0 <= float(held.min()) <= float(held.max()) <= 1.0
        names = {name.removeprefix("held.") for name in Watched.seen if name.startswith("held.")}
        assert names == set(sums)


def test_frozen_parameters_have_no_importance() -> None:
    some = toy("cnn")
    some.model.get_submodule("fc").requires_grad_(requires_grad=False)
    request = forget(some.model).instances(range(10)).using(Watched(**{**QUICK, "epochs": 1}))
    request.on("cpu").run(some.loader(), guard=None)
    held = [name for name in Watched.seen if name.startswith("held.")]
    assert held
    assert not any("fc" in name for name in held)


def test_importance_by_batches_is_that_of_the_code() -> None:
    run_on_samples(Watched(importance="batch", **{**QUICK, "epochs": 1}), count=30)
    some = toy("cnn")
    model = some.model.eval()
    images = some.train.tensors[0][:30]
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for part in images.split(20):
        model.zero_grad()
        model(part).norm(dim=1).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            sums[name] += parameter.grad.abs() * len(part)
    for name, value in sums.items():
        expected = 1 - (value - value.min()) / (value.max() - value.min())
        assert torch.allclose(Watched.seen[f"held.{name}"], expected, atol=1e-4), name


def test_absolute_gradients_do_not_cancel() -> None:
    """Per sample they are at least as large as those of the batch mean."""
    model = toy("cnn").model.eval()
    images = toy("cnn").train.tensors[0][:12]
    batch = Batch(images, torch.zeros(12, dtype=torch.long), torch.arange(12), 12)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def logits_of(values: object, inputs: object) -> Tensor:
        out: Tensor = torch.func.functional_call(model, values, (inputs,))  # type: ignore[arg-type]  # dict and tensor
        return out

    found = mean_absolute_gradients(logits_of, parameters, [batch])
    model(images).square().sum(dim=1).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert bool((found[name] >= parameter.grad.abs() - 1e-5).all()), name


@pytest.mark.parametrize("slug", ["adv", "adv_imp"])
def test_it_stops_at_the_first_step_that_has_forgotten(slug: str) -> None:
    """The same run cut one step earlier has not forgotten yet."""
    settings: dict[str, Any] = {
        **QUICK,
        "epochs": 30,
        "lr": 0.05,
        "attack_radius": 0.3,
        "balance": "sum",
    }

    def run(epochs: int) -> Result:
        some = toy("vit")
        request = (
            forget(some.model)
            .seed(0)
            .classes([3])
            .using(slug, **{**settings, "epochs": epochs, "batch_size": 65536})
        )
        return request.on("cpu").run(some.loader(), guard=None)

    done = run(30)
    assert done.after["forget"].accuracy == 0.0
    assert "reached its target" in done.stopped_because
    steps = int(done.history[-1]["steps"])
    assert 1 < steps < 30
    assert all(row["forget_accuracy"] > 0.0 for row in done.history[:-1])
    assert run(steps - 1).after["forget"].accuracy > 0.0


@pytest.mark.parametrize(("forget_size", "size", "steps"), [(16, 4, 4), (4, 16, 1), (4, 4, 4)])
def test_an_epoch_is_a_round_over_the_adversaries_however_few_they_are(
    forget_size: int, size: int, steps: int
) -> None:
    """One adversary a sample makes two sets of the same size."""
    batches: list[tuple[int, int]] = []

    class Watched(Adv):
        def loss(self, batch: Pair, run: Run) -> Terms:
            assert batch.forget is not None
            assert batch.retain is not None
            batches.append((len(batch.forget), len(batch.retain)))
            return super().loss(batch, run)

    method = Watched(
        adversaries=1, attack_steps=1, forget_batch_size=forget_size, batch_size=size, epochs=2,
        check_every=1000, lr=0.0,
    )  # fmt: skip
    run_on_samples(method, count=16)
    assert batches == [(forget_size, size)] * 2 * steps


def test_check_within_an_epoch_ends_the_run_there() -> None:
    some = toy("cnn")
    method = Adv(**{**QUICK, "lr": 0.3, "batch_size": 4, "epochs": 5})
    result = forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert result.history[-1]["steps"] % 30 != 0  # 60 x 2 adversarial images, 4 a step


@pytest.mark.parametrize("kind", TOYS)
def test_correct_reaches_all_new_labels(kind: str) -> None:
    some = toy(kind)
    wanted = corrections(16)
    request = forget(some.model).seed(0).relabel(wanted).using(Correct(lr=0.05, check_every=1))
    result = request.on("cpu").run(some.loader(), guard=None)
    predicted = some.model.eval()(some.train.tensors[0][:16]).argmax(dim=1)
    assert predicted.tolist() == list(wanted.values())
    assert result.history[-1]["epoch"] < 100


def test_correct_draws_other_classes_for_single_samples() -> None:
    class Kept(Correct):
        drawn: dict[str, Tensor] = {}  # noqa: RUF012  shared on purpose

        def setup(self, run: Run) -> State:
            state = super().setup(run)
            self.drawn.update(state)
            return state

    run_on_samples(Kept(epochs=1))
    labels = toy("cnn").train.tensors[1][:40]
    assert not (Kept.drawn["wanted"] == labels).any()
    assert len(set(Kept.drawn["wanted"].tolist())) == 4


def test_relabel_with_adversaries_moves_towards_the_new_labels() -> None:
    some = toy("cnn")
    method = Adv(**{**QUICK, "attack_radius": 0.1, "lr": 0.1, "epochs": 40, "forgotten": "push"})
    request = forget(some.model).seed(0).relabel(corrections(8)).using(method).on("cpu")
    request.run(some.loader(), guard=None)
    predicted = some.model.eval()(some.train.tensors[0][:8]).argmax(dim=1)
    assert int((predicted == torch.tensor(list(corrections(8).values()))).sum()) >= 4


@pytest.mark.parametrize("slug", ["adv", "adv_imp", "correct"])
def test_equal_images_with_different_new_labels_are_refused(slug: str) -> None:
    some = toy("cnn")
    before = weights(some.model)
    images, labels = (tensor[:20].clone() for tensor in some.train.tensors)
    images[4], labels[4] = images[0], labels[0]
    loader = DataLoader(TensorDataset(images, labels), batch_size=5)
    request = forget(some.model).relabel({0: 1, 4: 2}).using(slug).on("cpu")
    with pytest.raises(BadTarget, match="positions 0 and 4"):
        request.run(loader, guard=None)
    assert changed(before, weights(some.model)) == []


def test_adversaries_default_to_twice_the_classes_and_at_most_200() -> None:
    def facts(classes: int) -> Facts:
        return Facts(
            goal="instances", forget_size=16, retain_size=0, num_classes=classes, transformer=False
        )

    assert Adv().tuned(facts(10)).adversaries == 20
    assert Adv().tuned(facts(1000)).adversaries == 200
    assert Adv(adversaries=7).tuned(facts(10)).adversaries == 7


def test_fewer_adversaries_are_seen_more_often_as_in_the_authors_scripts() -> None:
    some = Facts(goal="instances", forget_size=16, retain_size=0, num_classes=10, transformer=False)
    assert [most_rounds(count) for count in (0, 1, 20, 50, 200, 300)] == [
        100, 1000, 1000, 400, 100, 100,
    ]  # fmt: skip
    assert Adv().tuned(some).epochs == 1000
    assert Adv(adversaries=100).tuned(some).epochs == 200
    assert Adv(epochs=30).tuned(some).epochs == 30
    assert build("adv", {"preset": "paper"}).tuned(some).hyperparameters()["epochs"] == 100


def test_cost_range_and_success_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="forgetkit"):
        _, result = run_on_samples(Adv(**{**QUICK, "epochs": 1}))
    told = [record.getMessage() for record in caplog.records if "attack" in record.getMessage()]
    assert "320 samples go forward and backward" in told[0]
    assert "pixels stay in [" in told[1]
    assert "seen in the forget set" in told[1]
    assert 0.0 <= result.history[0]["attack_success"] <= 1.0
    _, result = run_on_samples(Adv(**{**QUICK, "epochs": 1, "bounds": (-5.0, 5.0)}))
    assert any("[-5, 5] (as given by bounds)" in note for note in result.notes)


def test_requests_can_be_repeated_on_the_edited_model() -> None:
    some = toy("vit")
    seen = []
    for start in (0, 8):
        request = forget(some.model).seed(0).instances(range(start, start + 8))
        request.using(Watched(**QUICK)).on("cpu").run(some.loader(), guard=None)
        seen.append({name: value.clone() for name, value in Watched.seen.items()})
    assert not torch.equal(seen[0]["held.head.weight"], seen[1]["held.head.weight"])
    assert not torch.equal(seen[0]["start.head.weight"], seen[1]["start.head.weight"])


def test_presets_and_alias() -> None:
    assert find("iwu") is AdvImp
    paper = build("adv_imp", {"preset": "paper"})
    assert isinstance(paper, AdvImp)
    assert (paper.attack_radius, paper.balance, paper.importance) == (0.4, "sum", "sample")
    assert paper.importance_weight == 2.0  # the pull is halved, Eq. 7 is not
    code = build("iwu", {"preset": "code", "importance_weight": 10.0})
    assert isinstance(code, AdvImp)
    assert (code.attack_radius, code.balance, code.importance) == (4.0, "size", "batch")
    assert (code.weight_decay, code.bn, code.importance_weight) == (1e-4, "train", 10.0)
    for slug in ("adv", "correct", "neggrad"):
        for preset in ("paper", "code"):
            chosen = build(slug, {"preset": preset})
            assert getattr(chosen, "max_norm", 1.0) is None
            assert getattr(chosen, "cap", False) is False
    for preset in ("small", "large", "equal"):
        published = build("neggrad_plus", {"preset": preset}).hyperparameters()
        assert (published["cap"], published["max_norm"]) == (False, None)


def test_blocked_classes_leave_a_target() -> None:
    assert not blocked_classes(torch.tensor([0]), (1, 2), 4)[:, 3].any()


@pytest.mark.parametrize(
    "method",
    [Correct(lr=0.05, batch_size=16, epochs=60), Adv(**{**QUICK, "epochs": 60})],
    ids=["correct", "adv"],
)
def test_validation_data_do_not_end_it_before_all_are_forgotten(method: Method) -> None:
    some = toy("cnn")
    noise = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    poor = DataLoader(TensorDataset(noise, torch.arange(60) % 4), batch_size=32)
    request = forget(some.model).instances(range(3)).using(method).validate(poor).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert result.before["validation_retain"].accuracy > 0.2
    assert "target of 0.00 %" in result.stopped_because
    assert result.after["forget"].accuracy == 0.0


@pytest.mark.parametrize("forgotten", ["push", "rest"])
def test_parts_of_a_step_weigh_the_two_sets_as_the_whole_does(forgotten: str) -> None:
    """The first sample has a wrong label, so that it rests from the start where it may."""
    models = []
    settings: dict[str, Any] = {**QUICK, "adversaries": 20, "batch_size": 60, "epochs": 1}
    for parts in (1, 2):
        some = toy("cnn")
        some.train.tensors[1][0] = (some.train.tensors[1][0] + 1) % 4
        request = forget(some.model).instances(range(3)).on("cpu", accumulate=parts)
        adv = Adv(**{**settings, "lr": 0.01, "forgotten": forgotten})
        result = request.using(adv).run(some.loader(), guard=None)
        assert result.history[-1].get("at_rest", 0) == (forgotten == "rest")
        models.append(some.model)
    start = weights(toy("cnn").model)
    for name, left in weights(models[0]).items():
        moved = (left - start[name]).abs().max()
        assert (left - weights(models[1])[name]).abs().max() <= 1e-4 * moved + 1e-9, name


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("slug", ["adv", "adv_imp"])
def test_images_in_half_precision_train_as_those_in_single(
    kind: str, slug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    moved, losses = [], []
    for most in (1 << 32, 0):
        monkeypatch.setattr(adversarial, "_HALF_ABOVE", most)

        def noted(*args: Any, **kwargs: Any) -> AdversarialSet:  # noqa: ANN401  passed on
            made = adversarial_set(*args, **kwargs)
            seen.append(made.pixels.dtype)
            return made

        monkeypatch.setattr("forgetkit.adversarial_recipe.adversarial_set", noted)
        some = toy(kind)
        start = weights(some.model)
        request = forget(some.model).seed(0).instances(range(20)).using(slug, **QUICK).on("cpu")
        result = request.run(some.loader(), guard=None)
        losses.append([row["loss_retain_adversarial"] for row in result.history])
        after = weights(some.model)
        assert all(p.dtype == torch.float32 for p in some.model.parameters())
        moved.append({name: (after[name] - start[name]).float() for name in changed(start, after)})
    assert seen == [torch.float32, torch.float16]
    whole, half = moved
    assert whole
    assert whole.keys() == half.keys()
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    for name, move in whole.items():
        assert float((half[name] - move).norm()) <= 0.02 * float(move.norm()) + 1e-6, name


class Drawn(Correct):
    """Keeps the labels that setup drew."""

    labels: list[int] = []  # noqa: RUF012  shared on purpose

    def setup(self, run: Run) -> State:
        state = super().setup(run)
        self.labels[:] = state["wanted"].tolist()
        return state


@pytest.mark.parametrize("order", [range(20), range(19, -1, -1)])
def test_equal_images_draw_one_class_that_none_of_them_has(order: range) -> None:
    some = toy("cnn")
    images, labels = (tensor[:20].clone() for tensor in some.train.tensors)
    images[1:8], labels[:8] = images[0], torch.tensor([0, 1] * 4)
    images[9], labels[9] = images[8], labels[8]
    request = forget(some.model).seed(0).instances(order).using(Drawn(epochs=1, lr=0.0))
    request.on("cpu").run([(images, labels)], guard=None)
    by_position = dict(zip(sorted(order), Drawn.labels, strict=True))
    assert {by_position[position] for position in range(8)} < {2, 3}
    assert by_position[8] == by_position[9] != int(labels[8])
    rest = range(10, 20)
    draws = uniform(0, "correct", torch.arange(20))
    blocked = blocked_classes(labels, (), 4)
    alone = drawn_classes(draws[:, None], blocked)[:, 0]
    assert [by_position[p] for p in rest] == [int(alone[p]) for p in rest]


def test_equal_images_that_have_all_classes_are_refused() -> None:
    some = toy("cnn")
    before = weights(some.model)
    images, labels = (tensor[:20].clone() for tensor in some.train.tensors)
    images[3:7], labels[3:7] = images[3], torch.arange(4)
    request = forget(some.model).instances(range(2, 20)).using("correct").on("cpu")
    with pytest.raises(BadTarget, match=r"positions \[3, 4, 5, 6\] .* none of 4 classes"):
        request.run([(images, labels)], guard=None)
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize("relabel", [False, True])
@pytest.mark.parametrize(
    ("balance", "strength", "bn", "forgotten"),
    [
        ("size", 1.0, "frozen", "push"),
        ("sum", 2.0, "frozen", "push"),
        ("size", 1.0, "train", "push"),
        ("sum", 1.0, "frozen", "rest"),
        ("sum", 1.0, "train", "rest"),
    ],
)
def test_the_first_steps_are_the_literal_ones(
    balance: str, strength: float, bn: str, forgotten: str, *, relabel: bool
) -> None:
    """Momentum, weight decay, both terms and the pull; each set is one batch.

    With ``bn="train"`` each of the two sets is normalised by its own batch. What is forgotten
    rests by its reading in eval mode.
    """
    some = toy("cnn")
    rows, made = 40, 80
    steps, rate = (4, 0.02) if forgotten == "push" else (6, 0.1)
    method = Watched(
        adversaries=2, attack_steps=4, attack_radius=0.5, lr=rate, momentum=0.9, weight_decay=0.01,
        epochs=steps, batch_size=made, forget_batch_size=rows, balance=balance,
        importance_weight=strength, cap=False, max_norm=None, check_every=1000, bn=bn,
        forgotten=forgotten,
    )  # fmt: skip
    asked = forget(some.model)
    asked = asked.relabel(corrections(rows)) if relabel else asked.instances(range(rows))
    result = asked.using(method).on("cpu").run(some.loader(), guard=None)
    assert result.history[-1]["steps"] == steps

    literal = toy("cnn").model.eval()
    images, labels = (tensor[:rows] for tensor in some.train.tensors)
    attacked, targets = Watched.seen["attacked inputs"], Watched.seen["targets"]
    free = literal_importance(literal, images)
    for module in literal.modules():
        module.training = bn == "train" and isinstance(module, nn.BatchNorm2d)
    start = {name: p.detach().clone() for name, p in literal.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in start.items()}
    shares = (rows / (rows + made), made / (rows + made)) if balance == "size" else (1.0, 1.0)
    aims, sign = (torch.tensor([*corrections(rows).values()]), 1) if relabel else (labels, -1)
    rested = []
    for _ in range(steps):
        with torch.no_grad():
            read = copy.deepcopy(literal).eval()(images).argmax(dim=1)
        done = ((read == aims) == relabel) & (forgotten == "rest")
        rested.append(int(done.sum()))
        each = functional.cross_entropy(literal(images), aims, reduction="none")
        loss = shares[1] * functional.cross_entropy(literal(attacked), targets)
        loss = loss + shares[0] * sign * each.masked_fill(done, 0.0).mean()
        for name, p in literal.named_parameters():
            loss = loss + strength / 2 * ((1 - free[name]) * (p - start[name]) ** 2).sum()
        literal.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, p in literal.named_parameters():
                assert p.grad is not None
                velocity[name] = 0.9 * velocity[name] + p.grad + 0.01 * p
                p.sub_(rate * velocity[name])
    if forgotten == "rest":
        assert [row["at_rest"] for row in result.history] == rested
        assert max(rested) >= 2
    ours = weights(some.model)
    for name, p in literal.named_parameters():
        theirs = p.detach()
        assert float((ours[name] - theirs).abs().max()) <= 1e-6, name
        assert float((theirs - start[name]).abs().max()) > 1e-3, name


def test_the_cap_has_no_effect_where_forgotten_samples_rest() -> None:
    """With batch statistics a sample that eval mode reads rightly may be beyond the cap."""
    ended: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for forgotten in ("push", "rest"):
        for cap in (True, False):
            some = toy("cnn")
            method = Adv(
                **{**QUICK, "forget_batch_size": 60, "epochs": 10, "lr": 0.4},
                balance="sum", bn="train", check_every=1000, cap=cap, forgotten=forgotten,
            )  # fmt: skip
            request = forget(some.model).instances(range(60)).using(method).on("cpu")
            request.run(some.loader(), guard=None)
            ended[forgotten, cap] = weights(some.model)
    assert changed(ended["push", True], ended["push", False]) != []
    assert changed(ended["rest", True], ended["rest", False]) == []


def test_what_rests_is_read_from_the_rounded_weights_that_the_checks_see() -> None:
    """Else a sample that is done by the masters alone would rest for ever."""
    some = toy("cnn")
    some.model.bfloat16()
    method = Adv(
        adversaries=0, lr=3e-4, momentum=0.0, weight_decay=0.0, epochs=300, forgotten="rest"
    )
    request = forget(some.model).relabel({1: 2}).using(method).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert "reached its target" in result.stopped_because


def literal_importance(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the scaled mean of absolute gradients of the squared norm, image by image."""
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image in images:
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            sums[name] += parameter.grad.abs()
    return {n: (s - s.min()) / (s.max() - s.min()) for n, s in sums.items()}


@pytest.mark.slow
def test_adversaries_keep_more_of_the_rest_where_both_forget_all() -> None:
    images, labels = shuffled_digits()
    trained = learned(images[:1300], labels[:1300], seed=1, epochs=10, batch_size=64, norm=False)
    loader = DataLoader(TensorDataset(images[:1300], labels[:1300]), batch_size=65)
    kept = {}
    for method in (
        NegGrad(lr=0.001, batch_size=16, check_every=1, epochs=100),
        Adv(
            lr=0.02, balance="sum", attack_radius=1.0, attack_steps=10, adversaries=5,
            forget_batch_size=16, epochs=300,
        ),
    ):  # fmt: skip
        model = copy.deepcopy(trained)
        request = forget(model).instances(range(16)).using(method).on("cpu")
        result = request.run(loader, guard=None)
        assert result.after["forget"].accuracy == 0.0
        assert "reached its target" in result.stopped_because
        with torch.no_grad():
            right = model.eval()(images[1300:]).argmax(dim=1) == labels[1300:]
        kept[method.card.slug] = float(right.float().mean())
    assert kept["adv"] > kept["neggrad"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("goal", "rate"), [("relabel", 0.01), ("instances", 0.001)])
def test_samples_that_are_done_rest_by_default_which_keeps_more(goal: str, rate: float) -> None:
    images, labels = shuffled_digits()
    trained = learned(images[:1300], labels[:1300], seed=1, epochs=10, batch_size=64)
    loader = DataLoader(TensorDataset(images[:1300], labels[:1300]), batch_size=65)
    corrected = {row: (int(labels[row]) + 1 + row % 9) % 10 for row in range(16)}
    published: dict[str, Any] = {"forgotten": "push", "balance": "size"}
    kept = {}
    for settings in ({}, published):
        model = copy.deepcopy(trained)
        method = Adv(lr=rate, attack_steps=10, adversaries=10, **settings)
        asked = forget(model).using(method).on("cpu")
        asked = asked.relabel(corrected) if goal == "relabel" else asked.instances(range(16))
        result = asked.run(loader, guard=None)
        assert "reached its target" in result.stopped_because
        assert any("at_rest" in epoch for epoch in result.history) == (not settings)
        with torch.no_grad():
            right = model.eval()(images[1300:]).argmax(dim=1) == labels[1300:]
        kept[len(settings)] = float(right.float().mean())
    assert kept[0] > kept[2] + 0.03


@pytest.mark.slow
def test_the_pull_does_not_keep_labels_from_being_corrected() -> None:
    images, labels = shuffled_digits()
    trained = learned(images[:1300], labels[:1300], seed=1, epochs=10, batch_size=64)
    loader = DataLoader(TensorDataset(images[:1300], labels[:1300]), batch_size=65)
    corrected = {row: (int(labels[row]) + 1 + row % 9) % 10 for row in range(8)}
    method = AdvImp(attack_steps=10, adversaries=10)
    request = forget(trained).relabel(corrected).using(method).on("cpu")
    result = request.run(loader, guard=None)
    assert "reached its target" in result.stopped_because
    assert result.after["forget"].accuracy == 0.0
    with torch.no_grad():
        wanted = torch.tensor(list(corrected.values()))
        assert torch.equal(trained.eval()(images[:8]).argmax(dim=1), wanted)


@pytest.mark.parametrize(
    ("goal", "adversaries", "done", "balance"),
    [
        ("relabel", 20, "rest", "size"), ("relabel", 0, "push", "size"),
        ("instances", 20, "rest", "sum"), ("instances", 0, "push", "sum"),
        ("classes", 20, "push", "size"),
    ],
)  # fmt: skip
def test_what_becomes_of_samples_that_are_done_depends_on_the_goal(
    goal: GoalKind, adversaries: int, done: str, balance: str
) -> None:
    facts = Facts(goal=goal, forget_size=16, retain_size=0, num_classes=10, transformer=False)
    ready = Adv(adversaries=adversaries).tuned(facts)
    assert (ready.forgotten, ready.balance) == (done, balance)
    assert AdvImp().tuned(facts).balance == ("size" if goal == "classes" else "sum")
    other = "rest" if done == "push" else "push"
    asked = Adv(adversaries=adversaries, forgotten=other, balance="size").tuned(facts)
    assert (asked.forgotten, asked.balance) == (other, "size")


@pytest.mark.parametrize(
    ("goal", "samples", "adversaries", "bn"),
    [
        ("instances", 4, 20, "train"), ("instances", 3, 20, "frozen"),
        ("instances", 64, 0, "frozen"), ("relabel", 64, 20, "frozen"),
        ("classes", 64, 20, "frozen"),
    ],
)  # fmt: skip
def test_several_single_samples_are_normalised_by_their_own_batch(
    goal: GoalKind, samples: int, adversaries: int, bn: str
) -> None:
    facts = Facts(goal=goal, forget_size=samples, retain_size=0, num_classes=9, transformer=False)
    for method in (Adv(adversaries=adversaries), AdvImp(adversaries=adversaries)):
        assert method.tuned(facts).bn == bn
    for asked in ("frozen", "train"):
        assert Adv(adversaries=adversaries, bn=asked).tuned(facts).bn == asked
    for few in (Adv(forget_batch_size=3), Adv(batch_size=1)):
        assert few.tuned(facts).bn == "frozen"


@pytest.mark.parametrize("samples", [3, 4])
def test_running_statistics_move_with_several_single_samples(samples: int) -> None:
    some = toy("cnn")
    before = {name: buffer.clone() for name, buffer in some.model.named_buffers()}
    method = Adv(**{**QUICK, "epochs": 1})
    request = forget(some.model).instances(range(samples)).using(method).on("cpu")
    row = request.run(some.loader(), guard=None).history[0]
    moved = changed(before, dict(some.model.named_buffers()))
    assert row["bn_train"] == (samples == 4)
    assert bool(moved) == (samples == 4)


@pytest.mark.parametrize("forgotten", ["push", "rest"])
@pytest.mark.parametrize("check_every", [1, 2, 1000])
def test_the_effort_of_a_round_is_what_the_model_sees(forgotten: str, check_every: int) -> None:
    def run(epochs: int) -> tuple[float, float]:
        some = toy("cnn")
        method = Adv(
            adversaries=3, attack_steps=0, batch_size=25, forget_batch_size=8, lr=1e-9,
            epochs=epochs, forgotten=forgotten, check_every=check_every,
        )  # fmt: skip
        passes = 0.0

        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal passes
            passes += len(inputs[0]) * (1 if torch.is_grad_enabled() else 1 / 3)

        some.model.register_forward_pre_hook(count)
        request = forget(some.model).instances(range(20)).using(method).on("cpu")
        request.run(some.loader(), guard=None)
        facts = Facts(
            goal="instances", forget_size=20, retain_size=0, num_classes=5, transformer=False
        )
        return passes, effort(method, facts)

    (short, few), (long, many) = run(2), run(4)
    assert long - short == pytest.approx(many - few)
