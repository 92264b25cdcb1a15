"""What ``using("auto")`` chooses, and what it says about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import choosing, forget
from forgetkit.choosing import Situation, artefacts, choose, effort, fits, wants
from forgetkit.errors import BadHyperparameter, BadTarget, CannotSplitModel
from forgetkit.method import Facts, GoalKind, Method, all_methods, build, find
from forgetkit.testing import toy
from forgetkit.training_log import practise


def situation(
    goal: GoalKind,
    *,
    forget_size: int = 16,
    retain_size: int = 0,
    at_hand: dict[str, str] | None = None,
    seconds: float | None = None,
    classes: int = 10,
) -> Situation:
    facts = Facts(
        goal=goal,
        forget_size=forget_size,
        retain_size=retain_size,
        num_classes=classes,
        transformer=False,
    )
    each = None if seconds is None else 0.001
    return Situation(facts, at_hand=at_hand or {}, seconds=seconds, sample_seconds=each)


STATISTICS = {"statistics": "a-file"}


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (situation("classes", forget_size=6000), "lau"),
        (situation("classes", forget_size=6000, retain_size=54000), "lau"),
        (situation("classes", forget_size=6000, at_hand=STATISTICS), "pgu"),
        (situation("instances"), "suli"),
        (situation("instances", retain_size=50000), "scrub"),
        (situation("instances", at_hand=STATISTICS), "pgu"),
        (situation("instances", retain_size=50000, at_hand=STATISTICS), "pgu"),
        (situation("depoison", at_hand=STATISTICS), "pgu"),
        (situation("depoison", retain_size=50000), "scrub"),
        (situation("depoison"), "influence1"),
        (situation("relabel", retain_size=50000), "adv_imp"),
        (situation("relabel", forget_size=128, retain_size=50000), "correct"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.facts.goal}",
)
def test_the_choice_by_goal_and_data(asked: Situation, chosen: str) -> None:
    method, why = choose(asked)
    assert method.card.slug == chosen
    assert chosen in why
    assert asked.facts.goal in why
    assert method.card.cost in why
    for name, path in asked.at_hand.items():
        if name in artefacts(type(method)):
            assert getattr(method, name) == path
            assert f"{name}=" in why


def test_a_log_comes_first_for_samples(tmp_path: Path) -> None:
    method, why = choose(situation("instances", retain_size=500, at_hand={"log": str(tmp_path)}))
    assert method.card.slug == "amnesiac"
    assert method.hyperparameters()["log"] == str(tmp_path)
    assert "the file for log=" in why
    # its repair needs samples to keep
    assert choose(situation("instances", at_hand={"log": "x"}))[0].card.slug == "suli"


@pytest.mark.parametrize("size", [1, 4, 16, 24, 25, 26, 64, 128])
@pytest.mark.parametrize("retain_size", [0, 1000, 49975])
def test_an_attack_is_chosen_only_while_it_costs_less_than_an_epoch(
    size: int, retain_size: int
) -> None:
    method, why = choose(situation("relabel", forget_size=size, retain_size=retain_size))
    training_set = size + retain_size if retain_size else 50_000
    attack = size * 20 * 100  # N_adv = min(200, 2 K), 100 steps
    assert (method.card.slug == "adv_imp") == (attack <= training_set)
    assert ("(assumed)" in why) == (method.card.slug == "adv_imp" and retain_size == 0)


def test_a_time_limit_takes_the_first_that_keeps_it_or_the_fastest() -> None:
    asked = situation("instances", forget_size=100, retain_size=50000)
    free, _ = choose(asked)
    assert free.card.slug == "scrub"
    needed = {
        method.card.slug: effort(method(), asked.facts) * 0.001
        for method in all_methods()
        if "instances" in method.card.rank and not artefacts(method)
    }
    order = sorted(needed, key=lambda slug: find(slug).card.rank["instances"])
    assert order[0] == "scrub"
    limit = needed["scrub"] / 2
    method, why = choose(situation("instances", forget_size=100, retain_size=50000, seconds=limit))
    assert method.card.slug == next(slug for slug in order if needed[slug] <= limit)
    assert f"{limit:g} s allowed" in why
    method, why = choose(situation("instances", forget_size=100, retain_size=50000, seconds=1e-9))
    assert needed[method.card.slug] == min(needed.values())
    assert "fastest" in why


def test_the_effort_counts_passes() -> None:
    facts = situation("instances", forget_size=100, retain_size=1000).facts
    look = 100 / 3
    assert effort(find("finetune")(), facts) == pytest.approx(10 * (1000 + look))
    assert effort(find("neggrad")(), facts) == pytest.approx(10 * (100 + look))
    assert effort(build("neggrad", {"epochs": 3}), facts) == pytest.approx(3 * (100 + look))
    assert effort(find("suli")(), facts) == pytest.approx(40 * (100 + 2 * look))  # two layers
    scrub = build("scrub", {"epochs": 4})
    teacher = 4 / 3  # a forward beside forward and backward, and three max passes
    assert effort(scrub, facts) == pytest.approx(4 * (1000 * teacher + look) + 3 * 100 * teacher)
    least = build("scrub", {"epochs": 2, "max_epochs": 5})
    assert effort(least, facts) == pytest.approx(2 * (1100 * teacher + look))
    assert effort(find("lau")(), facts) == pytest.approx(100 / 3)
    assert effort(build("adv", {"adversaries": 3, "attack_steps": 7}), facts) >= 100 * 3 * 7


def test_several_labels_a_sample_leave_methods_that_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = situation("classes").facts
    with pytest.raises(BadTarget, match="several labels") as caught:
        choose(Situation(facts, multilabel=True))
    named = str(caught.value).split("name one of ")[1].split(", ")
    assert "neggrad" in named
    assert all(find(slug).card.multilabel for slug in named)


def test_nothing_ranked_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: list[type[Method]] = []
    monkeypatch.setattr(choosing, "all_methods", lambda: nothing)
    with pytest.raises(BadTarget, match="forgetkit methods --for depoison"):
        choose(situation("depoison"))


def test_ranks_are_told_apart_and_belong_to_goals_that_are_served() -> None:
    for goal in ("classes", "instances", "relabel", "depoison"):
        places = [card.rank[goal] for m in all_methods() if goal in (card := m.card).rank]
        assert places, f"nothing is ranked for {goal}"
        assert len(set(places)) == len(places), goal
    for method in all_methods():
        assert set(method.card.rank) <= set(method.card.goals), method.card.slug


def test_a_file_may_stand_for_the_retained_samples() -> None:
    pgu = find("pgu")
    assert not fits(pgu, "classes", has_retain=False)
    assert fits(pgu, "classes", has_retain=True)
    assert fits(pgu, "classes", has_retain=False, at_hand=["statistics"])
    assert not fits(pgu, "relabel", has_retain=True)
    amnesiac = find("amnesiac")
    assert not fits(amnesiac, "instances", has_retain=True)
    assert fits(amnesiac, "instances", has_retain=True, at_hand=["log"])
    assert not fits(amnesiac, "instances", has_retain=False, at_hand=["log"])
    assert wants(pgu) == ["forget", "retain", "statistics file instead of retain"]
    assert wants(amnesiac) == ["forget", "retain", "log file"]


def test_a_whole_run_says_why() -> None:
    some = toy("cnn")
    result = forget(some.model).classes([3]).using("auto").on("cpu").run(some.loader())
    assert result.method.card.slug == "lau"
    assert result.why is not None
    assert "the goal is classes" in result.why


class Tied(torch.nn.Module):
    """Class vectors that are read on the way as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(8))
        self.head = torch.nn.Linear(8, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        mixed = features + features.softmax(dim=1)[:, :4] @ self.head.weight
        logits: Tensor = self.head(mixed)
        return logits


class Fixed(torch.nn.Module):
    """Class vectors that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.LazyLinear(8)
        self.register_buffer("vectors", torch.linspace(-1, 1, 32).view(8, 4).cos())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images.flatten(1)) @ self.vectors
        return logits


@pytest.mark.parametrize("spoilt", ["frozen", "named", "tied", "no parameters"])
def test_a_head_that_cannot_be_edited_is_passed_over(spoilt: str) -> None:
    some = toy("cnn")
    model: torch.nn.Module = some.model
    if spoilt in ("frozen", "named"):
        some.model.fc.requires_grad_(False)
    else:
        torch.manual_seed(0)
        model = Tied() if spoilt == "tied" else Fixed()
        model(some.train.tensors[0][:2])
    request = forget(model).classes([3]).using("auto").on("cpu")
    request = request.head("fc") if spoilt == "named" else request
    result = request.run(some.loader(), guard=None)
    assert result.method.card.slug == "delete"
    words = {"tied": "shared with", "no parameters": "fixed numbers"}.get(
        spoilt, "found all 2 frozen"
    )
    assert result.why is not None
    assert words in result.why.split("passed over: ")[1]
    with pytest.raises(CannotSplitModel):
        forget(model).classes([3]).using("auto").head("nowhere").on("cpu").run(some.loader())


def test_the_loader_tells_what_is_at_hand() -> None:
    some = toy("cnn")
    whole = forget(some.model).instances(range(8)).using("auto", seconds=1000).on("cpu")
    result = whole.run(some.loader(), guard=None)
    assert result.method.card.slug == "scrub"
    assert result.why is not None
    assert "within the 1000 s allowed" in result.why
    only = DataLoader(TensorDataset(*(t[:8] for t in some.train.tensors)), batch_size=8)
    alone = forget(toy("cnn").model).instances().using("auto").on("cpu").run(only, guard=None)
    assert alone.method.card.slug == "suli"


def test_a_log_at_hand_is_used(tmp_path: Path) -> None:
    some = toy("cnn")
    practise(some.model, some.loader(), str(tmp_path))
    result = (
        forget(some.model)
        .instances([0, 1])
        .using("auto", log=tmp_path)
        .on("cpu")
        .run(some.loader())
    )
    assert result.method.card.slug == "amnesiac"


@pytest.mark.parametrize(
    "settings", [{"seconds": 0}, {"seconds": True}, {"alpha": 0.5}, {"log": 3}, {"statistics": ""}]
)
def test_auto_takes_a_limit_and_files_only(settings: dict[str, object]) -> None:
    with pytest.raises(BadHyperparameter, match="auto"):
        forget(torch.nn.Linear(2, 2)).using("auto", **settings)


def test_a_file_that_no_choosable_method_takes_is_refused() -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("auto", importance_file="a-file").on("cpu")
    with pytest.raises(BadHyperparameter, match=r"assd, lfssd, ssd; name .*ssd.* to use it"):
        request.run(some.loader())
    relabel = situation("relabel", forget_size=128, retain_size=50000, at_hand=STATISTICS)
    with pytest.raises(BadHyperparameter, match="which is for pgu; leave it out"):
        choose(relabel)


def test_the_reason_says_which_file_is_not_used() -> None:
    files = {"statistics": "a-file", "log": "a-folder"}
    method, why = choose(situation("instances", at_hand=files))
    unused = {"amnesiac": "statistics=", "pgu": "log="}[method.card.slug]
    assert f"it does not use {unused}" in why
