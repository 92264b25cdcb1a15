from __future__ import annotations

import pytest
import torch

from forgetkit import forget
from forgetkit.method import Facts, GoalKind, build
from forgetkit.methods.su import SU
from forgetkit.testing import TOYS, toy
from forgetkit.testing.trace import weights


def facts(goal: GoalKind = "classes", size: int = 5000, transformer: bool = False) -> Facts:
    return Facts(goal, size, retain_size=0, num_classes=10, transformer=transformer)


def test_settings_that_follow_the_request() -> None:
    assert SU().tuned(facts()).lr == 1e-4
    assert SU().tuned(facts("instances")).lr == 6e-5
    assert SU().tuned(facts(transformer=True)).lr == pytest.approx(1e-5)
    assert SU().tuned(facts(size=4096)).check_every == 1
    assert SU().tuned(facts(size=4097)).check_every is None
    assert SU(check_every=7, lr=0.1).tuned(facts(size=10)) == SU(check_every=7, lr=0.1)


def test_presets() -> None:
    code = build("su", {"preset": "code"})
    assert code == SU(
        lr=1e-4, temperature=4.0, epochs=10, batch_size=256, bn="train", check_every=100000
    )
    single = build("su", {"preset": "code_instances", "epochs": 5})
    assert single == SU(
        lr=6e-5,
        epochs=5,
        batch_size=256,
        bn="train",
        removed="argmax",
        epsilon=0.0,
        check_every=100000,
    )


@pytest.mark.parametrize("kind", TOYS)
def test_the_loss_falls_while_the_teacher_stays(kind: str) -> None:
    some = toy(kind)
    request = forget(some.model).classes([3]).using("su", lr=2e-4, epochs=6, batch_size=65536)
    losses = [row["loss"] for row in request.on("cpu").run(some.loader(), guard=None).history]
    assert len(losses) == 6
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_run_is_the_literal_one() -> None:
    """Targets once from the original weights, Adam, a step on all of D_f an epoch."""
    some, twin = toy("vit"), toy("vit").model.eval()
    images = some.train.tensors[0][some.train.tensors[1] == 3]
    epsilon, t = 0.05, 4.0
    with torch.no_grad():
        targets = (twin(images) / t).softmax(dim=1)
        for row in targets:
            rest = float(row.sum() - row[3])
            for k in range(4):
                row[k] = epsilon if k == 3 else (1 - epsilon) * row[k] / rest
    optimizer = torch.optim.Adam(twin.parameters(), 3e-4)
    for _ in range(3):
        log_probs = (twin(images) / t).log_softmax(dim=1)
        loss = (targets * (targets.log() - log_probs)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    settings = {"lr": 3e-4, "epochs": 3, "batch_size": 65536, "temperature": t, "epsilon": epsilon}
    request = forget(some.model).classes([3]).using("su", **settings).on("cpu")
    result = request.run(some.forget_loader(), guard=None)
    assert result.history[-1]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    close = [
        torch.isclose(value, weights(twin)[name], atol=1e-5).float().mean().item()
        for name, value in weights(some.model).items()
    ]
    assert min(close) > 0.9  # Adam's first step is a sign: where a gradient is 0 rounding decides


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("label", [0, 2])
def test_a_class_is_forgotten_and_the_rest_kept(kind: str, label: int) -> None:
    some = toy(kind)
    others = [other for other in range(4) if other != label]
    kept = some.accuracy(some.test, others)
    request = forget(some.model).classes([label]).using("su", lr=0.001, batch_size=32)
    result = request.on("cpu").run(some.forget_loader(label), guard=None)
    assert result.after["forget"].accuracy == 0.0
    assert some.accuracy(some.test, [label]) <= 0.1
    assert some.accuracy(some.test, others) >= kept - 0.05


def test_single_samples_stop_at_the_reference() -> None:
    some = toy("cnn")
    request = forget(some.model).instances(range(40)).using("su", lr=1e-3, reference=0.8)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert 0.6 <= result.after["forget"].accuracy <= 0.8
    assert len(result.history) > 1
    assert "80.00 %" in result.stopped_because
    assert not result.notes


def test_single_samples_without_a_reference_are_pointed_out() -> None:
    some = toy("cnn")
    request = forget(some.model).instances(range(40)).using("su", lr=5e-4, epochs=1)
    result = request.on("cpu").run(some.loader(), guard=None)
    assert any("reference=" in note for note in result.notes)


@pytest.mark.parametrize("preset", ["paper", "paper_instances", "code", "code_instances"])
def test_presets_look_after_each_epoch_however_small_the_forget_set(preset: str) -> None:
    made = []
    for more in ({}, {"check_every": 1}):
        some = toy("cnn")
        start = forget(some.model)
        asked = start.instances(range(40)) if "instances" in preset else start.classes([3])
        settings = {"preset": preset, "lr": 0.003, "batch_size": 4, "reference": 0.8, **more}
        result = asked.using("su", **settings).on("cpu").run(some.loader(), guard=None)
        assert "reached its target" in result.stopped_because
        made.append((result.history[-1]["steps"], len(result.history)))
    an_epoch = 10 if "instances" in preset else 15
    assert made[0][0] == an_epoch * made[0][1]
    assert made[1][0] < an_epoch * made[1][1]
