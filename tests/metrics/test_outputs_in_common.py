"""What every metric of accuracy, scores, distributions and representation keeps to."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torch import Tensor

from forgetkit.auditing.evidence import Evidence, Missing, Outputs, Role, Subject, collect
from forgetkit.metric import Finding, Metric, find_metric
from forgetkit.metrics.anamnesis import Anamnesis
from forgetkit.metrics.relearn_time import RelearnTime

READING = (
    "accuracy", "class_accuracy", "top_k_accuracy", "us", "forgetting_score", "final_score",
    "avg_gap", "tow", "kl", "js", "activation_distance", "completeness", "entropy", "zrf",
    "loss_distance", "loss_js", "confusion", "streisand", "layer_distance", "cka", "separability",
)  # fmt: skip
RUNNING: dict[str, Metric] = {
    "cka_layers": find_metric("cka_layers")(),
    "anamnesis": Anamnesis(steps=4, eval_every=2),
    "relearn_time": RelearnTime(steps=2, batch_size=32),
}
ALL = {**{slug: find_metric(slug)() for slug in READING}, **RUNNING}
ROLES: tuple[Role, ...] = ("original", "retrained", "untrained")
SAME = {
    "us": None, "kl": 0.0, "js": 0.0, "activation_distance": 0.0, "completeness": 1.0,
    "layer_distance": 0.0, "cka": 1.0, "cka_layers": 1.0, "avg_gap": 0.0, "tow": 1.0,
    "anamnesis": 1.0,
}  # fmt: skip


def everything() -> Evidence:
    return toys.evidence(roles=ROLES, references=2)


def bare(found: Finding) -> str:
    return json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("slug", ALL)
def test_models_are_left_as_they_were_and_results_repeat(slug: str) -> None:
    evidence = everything()
    models = [one.model for one in evidence.subjects.values()]
    before = [toys.state(model) for model in models]
    found = ALL[slug].measure(evidence)
    assert [toys.state(model) for model in models] == before
    assert bare(ALL[slug].measure(evidence)) == bare(found)
    assert found.samples > 0
    if found.value is not None:
        assert math.isfinite(found.value)
    if found.interval is not None and found.value is not None:
        assert found.interval[0] - 1e-9 <= found.value <= found.interval[1] + 1e-9


@pytest.mark.parametrize("slug", SAME)
def test_identical_models(slug: str) -> None:
    one = toys.original()
    subjects: dict[Role, Subject] = {"unlearned": one, "original": one, "retrained": one}
    found = ALL[slug].measure(replace(everything(), subjects=subjects, references=()))
    if SAME[slug] is None:
        assert found.value == found.controls["original"] == found.controls["retrained"]
    else:
        assert found.value == pytest.approx(SAME[slug], abs=1e-9)


def relabelled(found: Outputs, order: Tensor) -> Outputs:
    """Class c is called order[c] from now on."""
    return replace(found, logits=found.logits[:, order.argsort()], known_labels=order[found.labels])


@pytest.mark.slow
@pytest.mark.parametrize("slug", READING)
def test_names_of_classes_make_no_difference(slug: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    evidence = everything()

    def turned(subject: Subject) -> Subject:
        moved = {name: relabelled(each, order) for name, each in subject.outputs.items()}
        return replace(subject, outputs=moved)

    other = replace(
        evidence,
        subjects={role: turned(subject) for role, subject in evidence.subjects.items()},
        references=[turned(subject) for subject in evidence.references],
        forget_classes=(int(order[toys.GONE]),),
    )
    first, second = (ALL[slug].measure(one) for one in (evidence, other))
    assert second.value == pytest.approx(first.value, abs=1e-9)
    if slug != "class_accuracy":  # of equally bad classes the first one is named
        assert second.controls == pytest.approx(first.controls, abs=1e-9)
    assert second.verdict == first.verdict


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_size_makes_no_difference(size: int) -> None:
    evidence = everything()

    def again(subject: Subject) -> Subject:
        found = collect(subject.model, toys.sets(), view=subject.view, batch_size=size)
        return replace(subject, outputs=found)

    subjects = {role: again(subject) for role, subject in evidence.subjects.items()}
    other = replace(evidence, subjects=subjects, references=())
    for slug in ("accuracy", "us", "kl", "zrf", "entropy", "cka", "separability"):
        first = ALL[slug].measure(replace(evidence, references=()))
        assert ALL[slug].measure(other).value == pytest.approx(first.value, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("slug", ALL)
@pytest.mark.parametrize("split", ["forget", "retain", "test_forget", "test_retain"])
def test_a_set_less_gives_a_number_or_a_reason(slug: str, split: str) -> None:
    evidence = toys.without(everything(), split)
    try:
        found = ALL[slug].measure(evidence)
    except Missing as reason:
        assert str(reason).startswith("needs ")  # noqa: PT017  # either is right
        return
    assert "nan" not in bare(found).lower()


@pytest.mark.parametrize("slug", READING)
def test_one_sample_of_one_class(slug: str) -> None:
    """A set of one sample gives a number or a sentence, never NaN."""
    evidence = everything()

    def cut(subject: Subject) -> Subject:
        few = {name: each.take(torch.tensor([0])) for name, each in subject.outputs.items()}
        return replace(subject, outputs=few)

    few = replace(
        evidence,
        subjects={role: cut(subject) for role, subject in evidence.subjects.items()},
        references=[],
    )
    try:
        found = ALL[slug].measure(few)
    except Missing as reason:
        assert "needs" in str(reason)  # noqa: PT017  # either is right
        return
    assert "nan" not in bare(found).lower()


@pytest.mark.parametrize("slug", [slug for slug in READING if slug != "layer_distance"])
def test_no_answer_is_a_reason(slug: str) -> None:
    evidence = everything()
    own = evidence.subjects["unlearned"]
    for value in (torch.nan, torch.inf):
        broken = {
            name: replace(each, logits=each.logits * value) for name, each in own.outputs.items()
        }
        other = {**evidence.subjects, "unlearned": replace(own, outputs=broken)}
        with pytest.raises(Missing, match="NaN or infinity"):
            ALL[slug].measure(replace(evidence, subjects=other))


@pytest.mark.parametrize("slug", READING)
def test_half_precision_extremes_stay_finite(slug: str) -> None:
    evidence = everything()
    own = evidence.subjects["unlearned"]
    sharp = {
        name: replace(each, logits=(each.logits.sign() * 60000).half())
        for name, each in own.outputs.items()
    }
    other = {**evidence.subjects, "unlearned": replace(own, outputs=sharp)}
    found = ALL[slug].measure(replace(evidence, subjects=other))
    assert found.value is not None
    assert math.isfinite(found.value)
    assert "nan" not in bare(found).lower()
    assert '"inf' not in bare(found)
