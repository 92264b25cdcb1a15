from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import toy_evidence as toys

from forgetkit.auditing.evidence import Missing, Role, Subject
from forgetkit.auditing.relearned import Lessons, Progress, mean_over, relearn
from forgetkit.errors import UnlearningFailed
from forgetkit.losses import accuracy
from forgetkit.metric import Verdict
from forgetkit.metrics.anamnesis import Anamnesis, Runs, index, judged


def test_index_pinned() -> None:
    assert index(12, 60, 100)[0] == pytest.approx(0.2, abs=1e-9)
    assert index(12, 60, 100)[1] == ""
    assert index(30, 30, 100) == (1.0, "")
    assert index(0, 0, 100) == (1.0, "")


@pytest.mark.parametrize(
    ("own", "reference", "words"),
    [(None, 20, "index is above 5"), (10, None, "index is below 0.1"), (None, None, "not known")],
)
def test_a_run_that_never_arrives_gives_a_bound(
    own: int | None, reference: int | None, words: str
) -> None:
    value, note = index(own, reference, 100)
    assert value is None
    assert words in note


@pytest.mark.parametrize(
    ("own", "others", "verdict"),
    [
        (10, [20, 30], "residual"),
        (20, [20, 30], "as retrain"),
        (61, [20, 30], "over-forgotten"),
        (None, [20], "over-forgotten"),
        (None, [50], "over-forgotten"),
        (None, [51], "not decidable"),
        (20, [None], "residual"),
        (None, [20, None], "not decidable"),
        (5, [], "not decidable"),
    ],
)
def test_verdict(own: int | None, others: list[int | None], verdict: Verdict) -> None:
    assert judged(own, others, 100) == verdict


def lessons(lr: float = 0.05, steps: int = 20) -> Lessons:
    sets = toys.sets()
    return Lessons(sets["forget"], sets["retain"], 16, lr, 0.9, steps, 5, 0, torch.device("cpu"))


def test_relearning_is_plain_sgd_on_a_copy() -> None:
    model = toys.patched().model
    before = toys.state(model)
    look = mean_over(toys.sets()["forget"], torch.device("cpu"), accuracy)
    found = relearn(model, lessons(), look, lambda _: False)
    assert toys.state(model) == before
    assert found.steps is None
    assert [step for step, _ in found.curve] == [0, 5, 10, 15, 20]

    twin = copy.deepcopy(model).eval().requires_grad_(True)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    parts = [next(iter(toys.sets()[name].batches(1000))) for name in ("forget", "retain")]
    images = torch.cat([part.inputs for part in parts if isinstance(part.inputs, torch.Tensor)])
    labels = torch.cat([part.labels for part in parts])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = torch.randint(len(labels), (16,), generator=generator)
        loss = torch.nn.functional.cross_entropy(twin(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found.curve[-1][1] == pytest.approx(look(twin), abs=1e-9)


def test_without_a_learning_rate_nothing_moves() -> None:
    look = mean_over(toys.sets()["forget"], torch.device("cpu"), accuracy)
    found = relearn(toys.patched().model, lessons(lr=0.0), look, lambda _: False)
    assert len({number for _, number in found.curve}) == 1


def test_a_diverging_run_is_told() -> None:
    look = mean_over(toys.sets()["forget"], torch.device("cpu"), accuracy)
    with pytest.raises(UnlearningFailed, match="expected a finite loss"):
        relearn(toys.patched().model, lessons(lr=1e12, steps=40), look, lambda _: False)


def test_a_head_edit_is_relearnt_faster_than_a_retrained_model() -> None:
    found = Anamnesis(eval_every=2).measure(toys.evidence(references=2))
    assert found.value is not None
    assert found.value < 1
    assert found.verdict == "residual"
    assert found.controls["retrained"] > found.value


def test_the_same_model_has_index_one() -> None:
    found = Anamnesis().measure(toys.evidence(toys.retrained()[0]))
    assert found.value == 1.0
    assert found.verdict == "as retrain"


@pytest.mark.parametrize("seed", range(4))
def test_the_original_itself_has_nothing_to_relearn(seed: int) -> None:
    half = copy.deepcopy(toys.original().model)
    logits = toys.original().outputs["forget"].logits.clone()
    own = logits[:, toys.GONE].clone()
    logits[:, toys.GONE] = -torch.inf
    with torch.no_grad():  # right about every second forget sample
        dict(half.named_parameters())["fc.bias"][toys.GONE] -= (own - logits.amax(dim=1)).median()
    one = toys.subject(half)
    given = toys.evidence(one)
    given = replace(given, subjects={**given.subjects, "original": one}, seed=seed)
    found = Anamnesis(margin=0.0, samples=7, repeats=1, steps=1).measure(given)
    assert found.details["steps"] == {"unlearned": 0}


def test_the_lower_median_of_several_draws_counts() -> None:
    def took(*steps: int | None) -> int | None:
        return Runs(tuple(Progress(one, ()) for one in steps)).steps

    assert took(20, 5, 10) == 10
    assert took(None, 5, 10) == 10
    assert took(None, None, 10) is None
    assert took(30, 10) == 10
    found = Anamnesis(steps=10).measure(toys.evidence(roles=("original", "retrained")))
    curves = found.details["curves"]
    assert isinstance(curves, dict)
    assert len(curves["unlearned"]) == 3


def test_an_original_that_knows_nothing_is_refused() -> None:
    with pytest.raises(Missing, match="right about some forget samples"):
        Anamnesis().measure(replace(toys.evidence(), subjects=all_are(toys.patched())))


def all_are(one: Subject) -> dict[Role, Subject]:
    return {"unlearned": one, "original": one, "retrained": one}


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Missing, match="needs the retrained model"):
        Anamnesis().measure(toys.evidence(roles=("original",)))
    with pytest.raises(Missing, match="needs training samples to keep"):
        Anamnesis().measure(toys.without(toys.evidence(), "retain"))
