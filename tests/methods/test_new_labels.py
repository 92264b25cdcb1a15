"""What methods train towards are the labels that their setup found, sample by sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from forgetkit import forget
from forgetkit.draws import uniform
from forgetkit.engine.run import Run
from forgetkit.method import Method, State, find
from forgetkit.testing import toy


def labels_of_setup(slug: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that gets the labels of each run's setup."""
    seen: list[Tensor] = []
    kind = find(slug)
    setup = kind.setup

    def watched(method: Method, run: Run) -> State | None:
        state = setup(method, run)
        seen.append((state or {})["labels"])
        return state

    monkeypatch.setattr(kind, "setup", watched)
    return seen


@pytest.mark.parametrize(
    ("slug", "settings"),
    [
        ("random_label", {}),
        ("random_label", {"retain": "mix"}),
        ("initial_label", {}),
        ("boundary_shrink", {"attack_step": 0.4}),
        ("salun", {}),
    ],
)
def test_the_loss_is_that_of_the_labels_of_setup(
    slug: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = labels_of_setup(slug, monkeypatch)
    some, original = toy("vit"), toy("vit").model.eval()
    images, labels = some.train.tensors
    still = {"lr": 1e-9, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "batch_size": 16}
    request = forget(some.model).classes([1, 3]).using(slug, **{**still, **settings}).on("cpu")
    result = request.run(some.loader(), guard=None)
    lost = torch.isin(labels, torch.tensor([1, 3]))
    new = labels.clone()
    new[lost] = seen[0][: int(lost.sum())].cpu()
    assert set(new[lost].tolist()) == {0, 2}
    with torch.no_grad():
        logits = original(images)
    row, term = result.history[0], {"salun": "loss_forget"}.get(slug, "loss")
    of = slice(None) if settings.get("retain") == "mix" else lost
    wanted = float(functional.cross_entropy(logits[of], new[of]))
    assert row[term] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("slug", ["random_label", "salun"])
def test_a_drawn_label_belongs_to_the_sample(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = labels_of_setup(slug, monkeypatch)
    some = toy("cnn")
    chosen = ([3, 64, 70, 130, 200, 233], [70, 71, 72, 130, 180, 181, 200])
    by_position = []
    for positions in chosen:
        request = forget(toy("cnn").model).seed(4).instances(positions).on("cpu")
        request.using(slug, epochs=1, lr=1e-9).run(some.loader(), guard=None)
        by_position.append(dict(zip(positions, seen.pop().tolist(), strict=True)))
    one, other = by_position
    assert {at: one[at] for at in (70, 130, 200)} == {at: other[at] for at in (70, 130, 200)}
    for positions, found in zip(chosen, by_position, strict=True):
        own = some.train.tensors[1][positions]
        # the third part of [0, 1) that the draw is in names one of the three other classes
        rank = (uniform(4, "random_label", torch.tensor(positions)) * 3).long()
        assert list(found.values()) == (rank + (rank >= own)).tolist()


@pytest.mark.parametrize("goal", ["classes", "instances"])
@pytest.mark.parametrize("slug", ["random_label", "initial_label", "salun"])
def test_no_forgotten_class_and_no_own_label_is_a_new_label(
    slug: str, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, seen = toy("cnn"), labels_of_setup(slug, monkeypatch)
    start = forget(some.model)
    request = start.classes([1, 3]) if goal == "classes" else start.instances(range(120))
    request.using(slug, epochs=1, lr=1e-5).on("cpu").run(some.loader(), guard=None)
    assert len(seen[0]) == 120
    if goal == "classes":
        assert set(seen[0].tolist()) <= {0, 2}
    else:
        assert not bool((seen[0] == some.train.tensors[1][:120]).any())
        assert len(set(seen[0].tolist())) > 1
