"""Passes, hooks and borrowed sets of the training loop, seen through small methods."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from forgetkit import forget
from forgetkit.data.sets import StoredSet
from forgetkit.data.views import Joined, RowsOf
from forgetkit.engine import training
from forgetkit.engine.steps import chunks, pairs
from forgetkit.errors import BadHyperparameter, DataError, ModelError
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Method, Pair, Pass, Seen, build
from forgetkit.progress import Bar
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.result import Result
from forgetkit.testing import Toy, toy
from forgetkit.types import Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

CARD = Card(
    slug="probe",
    title="Probe",
    goals=("classes", "instances", "relabel"),
    needs=("forget", "retain"),
    edits="all",
    steps="forget",
    cost="none",
    source="tests",
    link="https://example.org",
    about="Records what the loop does.",
    presets={"gentle": {"lr": 0.25}},
)


@dataclass(frozen=True, kw_only=True)
class Probe(FullNetwork, StopsEarly):
    """Records its batches; the subclasses override one hook each."""

    card: ClassVar[Card] = CARD
    log: ClassVar[list[tuple[str, int, int]]] = []

    def loss(self, batch: Pair, run: Run) -> Terms:
        one = batch.forget or batch.retain
        assert one is not None
        other = 0 if batch.retain is None or batch.forget is None else len(batch.retain)
        self.log.append((run.phase, len(one), other))
        return {"loss": cross_entropy(run.logits(one), one.labels)}


def ask(method: Method, some: Toy) -> Result:
    method_log = getattr(method, "log", None)
    if method_log is not None:
        method_log.clear()
    request = forget(some.model).seed(0).classes([3]).using(method).on("cpu")
    return request.run(DataLoader(some.train, batch_size=32), guard=None)


@dataclass(frozen=True, kw_only=True)
class TwoPhases(Probe):
    """A pass over D_f in batches of 20, then two steps on D_r."""

    def passes(self, run: Run) -> Sequence[Pass]:
        return (
            Pass("forget", name="max", batch_size=20),
            Pass("retain", name="min", limit=2, batch_size=50),
            Pass("both", name="pair", batch_size=90, other_batch_size=10),
        )


def test_an_epoch_consists_of_its_passes_in_order() -> None:
    ask(TwoPhases(epochs=1, lr=0.0), toy("cnn"))
    assert TwoPhases.log == [
        *[("max", 20, 0)] * 3,
        *[("min", 50, 0)] * 2,
        *[("pair", 10, 90)] * 2,
    ]


@dataclass(frozen=True, kw_only=True)
class Whole(Probe):
    """One step over all of D_f."""

    def passes(self, run: Run) -> Sequence[Pass]:
        return (Pass("forget", whole=True),)


def test_a_whole_pass_is_one_step_on_the_mean_gradient_whatever_the_batches() -> None:
    weights = []
    for size in (7, 60):
        some = toy("vit")
        result = ask(Whole(epochs=1, lr=0.1, momentum=0.0, batch_size=size), some)
        assert result.history[0]["steps"] == 1
        weights.append(torch.cat([p.detach().flatten() for p in some.model.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Decaying(Probe):
    """Halves the step size each epoch."""

    seen: ClassVar[list[float]] = []

    def rate(self, run: Run) -> float | None:
        return 0.1 * 0.5**run.epoch

    def gradients(self, run: Run) -> None:
        before = {name: p.detach().clone() for name, p in run.parameters.items()}
        moved = (run.state.get("previous", before["fc.bias"]) - before["fc.bias"]).abs().max()
        self.seen.append(float(moved))
        run.state = {"previous": before["fc.bias"]}
        for parameter in run.parameters.values():
            parameter.grad = torch.ones_like(parameter)


def test_rate_and_gradients_decide_the_step() -> None:
    Decaying.seen.clear()
    ask(Decaying(epochs=3, momentum=0.0, batch_size=1000), toy("cnn"))
    assert Decaying.seen == pytest.approx([0.0, 0.1, 0.05], abs=1e-6)


@dataclass(frozen=True, kw_only=True)
class OnlyHead(Probe):
    """Trains the head alone, with batch statistics where something trains."""

    def trained(self, run: Run) -> set[str]:
        return {"fc.weight"}


def test_untrained_parameters_and_their_statistics_keep_their_bits() -> None:
    some = toy("cnn")
    before = {name: value.clone() for name, value in some.model.state_dict().items()}
    ask(OnlyHead(epochs=1, lr=0.1, weight_decay=0.1, bn="train"), some)
    after = some.model.state_dict()
    assert {name for name in before if not before[name].equal(after[name])} == {"fc.weight"}
    assert all(p.requires_grad for p in some.model.parameters())


@dataclass(frozen=True, kw_only=True)
class WithExtra(Probe):
    """Trains a shift of the logits that the model does not have."""

    shifts: ClassVar[list[Tensor]] = []

    def extra(self, run: Run) -> Mapping[str, Tensor]:
        return {"shift": torch.zeros(run.num_classes)}

    @property
    def extra_rate(self) -> float:
        return 2.0

    def loss(self, batch: Pair, run: Run) -> Terms:
        self.shifts.append(run.extra["shift"].detach().clone())
        return {"shift": run.extra["shift"].sum()}


def test_extra_tensors_train_at_their_own_rate() -> None:
    WithExtra.shifts.clear()
    ask(WithExtra(epochs=2, lr=0.1, momentum=0.0, batch_size=1000), toy("cnn"))
    assert WithExtra.shifts[1].tolist() == pytest.approx([-0.2] * 4)


@dataclass(frozen=True, kw_only=True)
class Rewinds(Probe):
    """Stops at the first check and puts the start back in the end."""

    def setup(self, run: Run) -> Mapping[str, Tensor]:
        return {"before": run.predictions(run.forget)}

    def begin(self, run: Run) -> None:
        run.parameters["fc.bias"].add_(1.0)
        run.state = {**run.state, **run.snapshot()}
        run.log("moved the bias")
        run.count("moved", 1)

    def checked(self, seen: Seen, run: Run) -> str | None:
        return f"seen at step {run.step}, epoch ended: {seen.epoch_ended}"

    def finish(self, run: Run) -> None:
        run.restore({n: run.state[n] for n in run.snapshot()})


def test_begin_check_and_finish() -> None:
    some = toy("cnn")
    before = some.model.state_dict()["fc.bias"].clone()
    result = ask(Rewinds(epochs=5, lr=0.1, check_every=2, batch_size=20), some)
    assert result.stopped_because == "seen at step 2, epoch ended: False"
    assert some.model.state_dict()["fc.bias"].equal(before + 1.0)
    assert result.notes[0] == "moved the bias"
    assert result.history[0]["moved"] == 1.0


def test_the_mask_lets_exactly_its_share_move() -> None:
    some = toy("cnn")
    before = {name: p.detach().clone() for name, p in some.model.named_parameters()}
    ask(Probe(epochs=1, lr=0.1, weight_decay=0.1, mask=0.25), some)
    after = dict(some.model.named_parameters())
    moved = sum(int((before[name] != after[name]).sum()) for name in before)
    total = sum(p.numel() for p in before.values())
    assert 0 < moved <= math.ceil(0.25 * total)
    assert moved > 0.2 * total


def test_a_cosine_schedule_falls_to_zero_over_the_run() -> None:
    some = toy("cnn")
    result = ask(Probe(epochs=4, lr=0.1, schedule="cosine", batch_size=1000), some)
    losses = [row["loss"] for row in result.history]
    assert abs(losses[3] - losses[2]) < abs(losses[1] - losses[0])


@dataclass(frozen=True, kw_only=True)
class Dwindles(Probe):
    """Five steps in the first epoch, two in the others."""

    def passes(self, run: Run) -> Sequence[Pass]:
        few = Pass("retain", limit=2)
        return (Pass("forget", limit=3, batch_size=20), few) if run.epoch == 0 else (few,)

    def checked(self, seen: Seen, run: Run) -> None:
        """Make all epochs."""


def test_a_schedule_and_the_bar_heed_epochs_of_different_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = toy("cnn")
    rates: list[float] = []
    totals: list[int] = []

    @contextmanager
    def drawn(_: str) -> Iterator[Bar]:
        yield Bar(expect=totals.append)

    monkeypatch.setattr(training, "progress", drawn)
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    try:
        ask(Dwindles(epochs=4, lr=0.1, schedule="cosine"), some)
    finally:
        hook.remove()
    shares = [k / 20 for k in range(5)] + [k / 8 for k in range(2, 8)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * share)) for share in shares])
    assert totals == [20, 11, 11, 11]


@dataclass(frozen=True, kw_only=True)
class Corrects(Probe):
    """Trains towards the new labels."""

    card: ClassVar[Card] = CARD

    def loss(self, batch: Pair, run: Run) -> Terms:
        assert batch.forget is not None
        assert run.forget.new_labels is not None
        wanted = run.forget.new_labels[batch.forget.index]
        return {"new": cross_entropy(run.logits(batch.forget), wanted)}


def test_a_relabel_run_stops_when_every_new_label_is_known() -> None:
    some = toy("cnn")
    new = {position: (int(some.train[position][1]) + 1) % 4 for position in range(8)}
    method = Corrects(epochs=200, lr=0.02, check_every=1)
    request = forget(some.model).seed(0).relabel(new).using(method).on("cpu")
    result = request.run(some.loader(), guard=None)
    assert result.before["new_labels"].accuracy < 0.5
    assert result.after["new_labels"].accuracy == 1.0
    assert "reached its target" in result.stopped_because


def test_a_preset_is_overridden_by_what_is_given() -> None:
    with pytest.raises(
        BadHyperparameter, match="expected preset to be one of paper, code, found 'x'"
    ):
        build("lau", {"preset": "x"})
    assert build("lau", {"preset": "paper"}).hyperparameters()["momentum"] == 0.0
    made = build("lau", {"preset": "paper", "momentum": 0.5, "alpha": 0.4}).hyperparameters()
    assert (made["momentum"], made["alpha"]) == (0.5, 0.4)


def some_set(count: int, start: int = 0) -> StoredSet:
    values = torch.arange(start, start + count)
    return StoredSet(values.float()[:, None], values, batch_size=4)


@pytest.mark.parametrize("shard", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_joined_sets_keep_sample_label_and_index_together(
    shard: tuple[int, int], *, shuffled: bool
) -> None:
    joined = Joined(some_set(5), some_set(0), some_set(7, start=100))
    generator = torch.Generator().manual_seed(0) if shuffled else None
    seen = []
    for batch in joined.batches(3, generator=generator, shard=shard):
        assert isinstance(batch.inputs, Tensor)
        assert batch.inputs[:, 0].long().equal(batch.labels)
        assert joined.labels[batch.index].equal(batch.labels)
        assert batch.total == 3
        seen += batch.index.tolist()
    shares = {
        (0, 1): 12,
        (0, 2): 8,
        (1, 2): 4,
    }  # of each batch of three: all, first and last, second
    assert len(seen) == len(set(seen)) == shares[shard]
    assert shard != (0, 1) or (seen == sorted(seen)) is not shuffled


def test_rows_of_a_set_keep_their_numbers() -> None:
    rows = RowsOf(some_set(10), torch.tensor([7, 2, 5]))
    batches = list(rows.batches(2))
    assert [batch.index.tolist() for batch in batches] == [[7, 2], [5]]
    assert [batch.labels.tolist() for batch in batches] == [[7, 2], [5]]
    assert rows.take(torch.tensor([2, 0])).labels.tolist() == [5, 7]


def test_sets_of_different_kinds_are_not_joined() -> None:
    vectors = StoredSet(torch.zeros(2, 1), torch.zeros(2, 3))
    with pytest.raises(DataError, match="labels of one kind"):
        Joined(some_set(2), vectors)


@dataclass(frozen=True, kw_only=True)
class TrainsNothing(Probe):
    """Names a parameter that the model does not have."""

    def trained(self, run: Run) -> set[str]:
        return {"no.such.weight"}


def test_a_method_that_would_train_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\(no\.such\.weight\), found none"):
        ask(TrainsNothing(), toy("cnn"))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("forgotten", "kept"), [(10, 4), (4, 10)])
def test_the_longer_set_is_read_once_and_the_shorter_one_again_and_again(
    forgotten: int, kept: int, *, shuffled: bool
) -> None:
    generator = torch.Generator().manual_seed(0) if shuffled else None
    sets = some_set(forgotten), some_set(kept, start=100)
    steps = list(pairs("both", *sets, batch_size=2, generator=generator, shard=(0, 1)))
    forget_rows, retain_rows = [], []
    for pair in steps:
        assert pair.forget is not None
        assert pair.retain is not None
        forget_rows += pair.forget.labels.tolist()
        retain_rows += [label - 100 for label in pair.retain.labels.tolist()]
    longer, shorter = forget_rows, retain_rows
    if kept > forgotten:
        longer, shorter = shorter, longer
    assert len(steps) == 5  # 10 by 2
    assert sorted(longer) == list(range(10))
    assert [sorted(shorter[at : at + 4]) for at in (0, 4)] == [[0, 1, 2, 3]] * 2
    assert len(shorter) == 10


def test_parts_of_a_pair_hold_samples_of_both_batches() -> None:
    few, many = next(iter(some_set(2).batches(2))), next(iter(some_set(9).batches(9)))
    parts = chunks(Pair(few, many), 4)
    assert [(len(p.forget or ()), len(p.retain or ())) for p, _, _ in parts] == [(1, 5), (1, 4)]
    assert sum(share for _, share, _ in parts) == pytest.approx(1.0)
    assert sum(share for _, _, share in parts) == pytest.approx(1.0)
