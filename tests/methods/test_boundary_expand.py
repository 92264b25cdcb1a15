from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from forgetkit import forget
from forgetkit.engine.run import Run
from forgetkit.method import Seen, State
from forgetkit.methods.boundary_expand import BoundaryExpand, expanded
from forgetkit.result import Result
from forgetkit.testing import TOYS, Toy, toy
from forgetkit.testing.trace import changed, weights


class Recording(BoundaryExpand):
    """Runs to the end, and keeps the first row and the last logits with the shadow class."""

    seen: ClassVar[dict[str, Tensor]] = {}

    def extra(self, run: Run) -> State:
        made = super().extra(run)  # noqa: S610  no Django here
        self.seen.update({name: value.clone() for name, value in made.items()})
        return made

    def checked(self, seen: Seen, run: Run) -> str | None:
        return None

    def finish(self, run: Run) -> None:
        batch = next(iter(run.forget.batches(1000)))
        features = run.features(batch)
        self.seen["logits"] = expanded(
            run.head(features), features, run.extra["weight"], run.extra["bias"]
        )
        self.seen["plain"] = run.logits(batch)


def record(some: Toy, *, epochs: int, lr: float, batch_size: int = 16) -> Result:
    method = Recording(epochs=epochs, lr=lr, batch_size=batch_size)
    return forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)


def test_loss_on_one_sample_is_the_log_sum_exp_by_hand() -> None:
    logits, features = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[2.0, 3.0]])
    weight, bias = torch.tensor([[0.5, -1.0]]), torch.tensor([0.25])
    shadow = 0.5 * 2 - 1.0 * 3 + 0.25
    found = expanded(logits, features, weight, bias)
    assert found.tolist() == [[1.0, -2.0, 0.5, shadow]]
    by_hand = math.log(sum(math.exp(z) for z in [1.0, -2.0, 0.5, shadow])) - shadow
    loss = torch.nn.functional.cross_entropy(found, torch.tensor([3]))
    assert float(loss) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("kind", TOYS)
def test_loss_of_a_run_is_the_log_sum_exp_over_the_forget_set(kind: str) -> None:
    result = record(toy(kind), epochs=1, lr=0.0, batch_size=60)
    logits = Recording.seen["logits"]
    assert logits.shape == (60, 5)
    assert torch.allclose(logits[:, :4], Recording.seen["plain"], atol=1e-6)
    expected = (logits.exp().sum(dim=1).log() - logits[:, 4]).mean()
    assert result.history[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", TOYS)
def test_rate_zero_leaves_the_old_logits(kind: str) -> None:
    some = toy(kind)
    before = weights(some.model)
    method = BoundaryExpand(epochs=2, lr=0.0)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize("kind", TOYS)
def test_head_keeps_shape_and_identity(kind: str) -> None:
    some = toy(kind)
    head = some.model.get_submodule("fc" if kind == "cnn" else "head")
    seen = [(id(p), p.data_ptr(), tuple(p.shape)) for p in head.parameters()]
    names = list(some.model.state_dict())
    method = BoundaryExpand(epochs=1, lr=0.01)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    after = some.model.get_submodule("fc" if kind == "cnn" else "head")
    assert after is head
    assert [(id(p), p.data_ptr(), tuple(p.shape)) for p in after.parameters()] == seen
    assert list(some.model.state_dict()) == names


@pytest.mark.parametrize("kind", TOYS)
def test_the_shadow_class_wins_before_it_is_dropped(kind: str) -> None:
    record(toy(kind), epochs=15, lr=0.05)
    assert bool((Recording.seen["logits"].argmax(dim=1) == 4).all())
    assert bool((Recording.seen["plain"].argmax(dim=1) < 4).all())


def test_the_row_is_drawn_like_that_of_a_linear_layer() -> None:
    some = toy("cnn")
    record(some, epochs=1, lr=0.0)
    width = some.model.get_parameter("fc.weight").shape[1]
    assert Recording.seen["weight"].shape == (1, width)
    assert Recording.seen["bias"].shape == (1,)
    drawn = torch.cat([Recording.seen["weight"].flatten(), Recording.seen["bias"]])
    assert float(drawn.abs().max()) <= 1 / math.sqrt(width)
    assert float(drawn.std()) > 0.2 / math.sqrt(width)


@pytest.mark.parametrize(("lr", "moves"), [(0.0, False), (0.1, True)])
def test_the_shadow_row_is_drawn_on_both_sides_of_zero_and_is_trained(
    lr: float, moves: bool
) -> None:
    class Watched(Recording):
        def finish(self, run: Run) -> None:
            super().finish(run)
            self.seen.update({f"{name} after": t.clone() for name, t in run.extra.items()})

    some = toy("cnn")
    method = Watched(epochs=2, lr=lr, batch_size=16)
    forget(some.model).classes([3]).using(method).on("cpu").run(some.loader(), guard=None)
    seen = Recording.seen
    assert float(seen["weight"].min()) < 0.0 < float(seen["weight"].max())
    assert float(seen["bias"].abs().max()) > 0.0
    for name in ("weight", "bias"):
        assert torch.equal(seen[name], seen[f"{name} after"]) != moves, name
