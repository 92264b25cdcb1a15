"""Audits on a toy CNN: what a head-only method hid, they find; what was retrained, they pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torch import Tensor

from forgetkit.auditing.evidence import Missing, Role, Subject, collect
from forgetkit.auditing.inputs import view_of
from forgetkit.auditing.neighbourhood import answer_of, images, logits_over, towards, value_range
from forgetkit.auditing.probes import (
    class_means,
    few_shot_rows,
    nearest_mean_head,
    probe_predictions,
)
from forgetkit.auditing.relearning import lesson, relearn, reset_rows
from forgetkit.engine.modes import evaluating
from forgetkit.metric import Metric, Verdict, find_metric
from forgetkit.metrics.adversarial_recovery import AdversarialRecovery
from forgetkit.metrics.knowledge_retention import KnowledgeRetention
from forgetkit.metrics.linear_probe import LinearProbe
from forgetkit.metrics.over_unlearning import OverUnlearning
from forgetkit.metrics.prompt_resurrection import PromptResurrection
from forgetkit.metrics.prototype import Prototype
from forgetkit.metrics.quantisation import Quantisation
from forgetkit.metrics.relearning import Relearning
from forgetkit.testing import toy

QUICK = Relearning(repeats=1, more_shots=False, steps=30)
AUDITS: tuple[Metric, ...] = (
    AdversarialRecovery(steps=3, most=20),
    KnowledgeRetention(),
    LinearProbe(draws=2),
    OverUnlearning(),
    PromptResurrection(steps=5),
    Prototype(),
    Quantisation(),
    replace(QUICK, steps=5),
)
FEATURES = (LinearProbe(draws=4), Prototype(), KnowledgeRetention())


def slug(metric: Metric) -> str:
    return metric.card.slug


@pytest.mark.parametrize("metric", AUDITS, ids=slug)
@pytest.mark.slow
def test_an_audit_leaves_models_alone_and_repeats_itself(metric: Metric) -> None:
    evidence = toys.evidence(roles=("original", "retrained", "untrained"), references=2)
    before = [toys.state(one.model) for one in evidence.subjects.values()]
    found = metric.measure(evidence)
    assert [toys.state(one.model) for one in evidence.subjects.values()] == before
    assert found.slug == metric.card.slug
    assert find_metric(found.slug) is type(metric)
    assert found.samples > 0
    assert set(found.controls) <= {"original", "retrained", "untrained"}
    assert {"original", "retrained"} <= set(found.controls)
    record = json.dumps(found.to_json(), allow_nan=False)
    assert record == json.dumps(metric.measure(evidence).to_json(), allow_nan=False)


@pytest.mark.parametrize("metric", AUDITS, ids=slug)
def test_without_a_retrained_model_nothing_is_called_as_retrain(metric: Metric) -> None:
    found = metric.measure(toys.evidence(toys.retrained()[1], roles=("original",)))
    assert found.verdict == "not decidable"
    assert "no retrained model" in found.note


@pytest.mark.parametrize("metric", AUDITS, ids=slug)
def test_single_samples_are_not_asked_about_classes(metric: Metric) -> None:
    with pytest.raises(Missing, match="single samples"):
        metric.measure(replace(toys.evidence(), goal="instances"))


@pytest.mark.slow
@pytest.mark.parametrize("metric", AUDITS, ids=slug)
def test_identical_models_are_as_retrain(metric: Metric) -> None:
    one = toys.retrained()[0]
    evidence = toys.evidence(one)
    same = replace(evidence, subjects={"unlearned": one, "original": one, "retrained": one})
    if slug(metric) == "relearning":
        with pytest.raises(Missing, match="an original that recognises"):
            metric.measure(same)
        one = toys.original()
        same = replace(evidence, subjects={"unlearned": one, "original": one, "retrained": one})
        never = metric.measure(same)  # within five steps
        assert (never.value, never.verdict) == (float("inf"), "not decidable")
        assert "does not learn the class within 5 steps" in never.note
        metric = replace(QUICK, lr=0.1)
    found = metric.measure(same)
    assert found.verdict == "as retrain"
    assert found.value != float("inf")
    assert found.value == found.controls["retrained"] == found.controls["original"]


@pytest.mark.parametrize(
    ("metric", "split"),
    [(audit, "test_forget") for audit in AUDITS if slug(audit) not in
     ("over_unlearning", "adversarial_recovery")]
    + [(audit, "forget") for audit in AUDITS if slug(audit) != "quantisation"]
    + [(Quantisation(), "test_retain"), (LinearProbe(), "retain"), (QUICK, "retain")],
    ids=lambda one: one if isinstance(one, str) else slug(one),
)  # fmt: skip
def test_a_missing_set_is_named(metric: Metric, split: str) -> None:
    with pytest.raises(Missing, match="needs"):
        metric.measure(toys.without(toys.evidence(), split))


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("metric", FEATURES, ids=slug)
def test_a_head_only_edit_leaves_the_features_bit_for_bit(metric: Metric, kind: str) -> None:
    found = metric.measure(toys.evidence(kind=kind, roles=("original",)))
    assert found.value == found.controls["original"]
    assert "bit for bit" in found.note
    record = found.to_json()["details"]
    assert isinstance(record, dict)
    for one in record["curve"].values() if "curve" in record else [record]:
        for numbers in (one["forgotten"], one["kept"]):
            assert numbers["unlearned"] == numbers["original"]


@pytest.mark.parametrize("metric", FEATURES, ids=slug)
def test_features_give_a_head_only_edit_away(metric: Metric) -> None:
    evidence = toys.evidence(references=3)
    accuracy = evidence.of("unlearned", "test_forget").right.double().mean()
    assert float(accuracy) < 0.05
    found = metric.measure(evidence)
    assert found.verdict == "residual"
    assert found.value is not None
    assert found.value > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("references", [0, 1])
@pytest.mark.parametrize("metric", FEATURES, ids=slug)
@pytest.mark.parametrize(("samples", "verdict"), [(9, "not decidable"), (10, "residual")])
def test_few_samples_decide_nothing_about_the_same_features(
    metric: Metric, references: int, samples: int, verdict: Verdict
) -> None:
    def few(one: Subject) -> Subject:
        tests = one.outputs["test_forget"].take(torch.arange(samples))
        return replace(one, outputs={**one.outputs, "test_forget": tests})

    roles: tuple[Role, ...] = ("original", "retrained")
    given = toys.evidence(roles=roles[: 1 + references])
    subjects = {role: few(one) for role, one in given.subjects.items()}
    found = metric.measure(replace(given, subjects=subjects, references=()))
    assert "bit for bit" in found.note
    assert (f"{samples} samples are too few" in found.note) == (verdict == "not decidable")
    assert found.verdict == verdict


@pytest.mark.parametrize("metric", FEATURES, ids=slug)
def test_a_retrained_model_passes(metric: Metric) -> None:
    evidence = toys.evidence(toys.retrained()[1], references=3)
    others = (toys.retrained()[0], toys.retrained()[2])
    assert metric.measure(replace(evidence, references=others)).verdict == "as retrain"


def test_few_shots_order_the_models() -> None:
    everyone = toys.evidence(roles=("original", "retrained", "untrained"))
    found = Prototype(shots=1).measure(everyone)
    assert found.controls["original"] > found.controls["retrained"] > found.controls["untrained"]


def test_a_harmonic_mean_that_was_not_measured_is_none() -> None:
    given = toys.evidence(roles=("original",))
    for evidence, known in ((given, True), (toys.without(given, "test_retain"), False)):
        row = Prototype().measure(evidence).details["row"]
        assert isinstance(row, dict)
        assert all((one["best_harmonic_mean"] is not None) == known for one in row.values())


def test_relearning_gives_a_head_only_edit_away() -> None:
    for subject in (toys.patched(), toys.masked()):
        found = QUICK.measure(toys.evidence(subject, references=3))
        assert found.verdict == "residual"
        assert found.value is not None
        assert found.value < found.controls["retrained"]


def scaled(before: Subject, factor: float) -> Subject:
    """The same answers, more surely: steps that suit the original are too large for it."""
    model = copy.deepcopy(before.model)
    with torch.no_grad():
        for weight in model.fc.parameters():  # type: ignore[union-attr]  # a toy network's head
            weight.mul_(factor)
    return toys.subject(model)


def test_a_model_that_answers_as_before_is_not_called_slow_to_relearn() -> None:
    found = replace(QUICK, steps=10).measure(toys.evidence(scaled(toys.original(), 300.0)))
    assert found.verdict == "residual"
    assert "without any step" in found.note
    assert found.value == float("inf")


def test_relearning_decides_nothing_where_its_steps_ruin_the_copy() -> None:
    audited = replace(QUICK, steps=50, every=50)
    found = audited.measure(toys.evidence(scaled(toys.masked(), 300.0)))
    assert found.verdict == "not decidable"
    assert "ruin what a copy knows of kept classes; lower lr" in found.note


@pytest.mark.slow
def test_relearning_passes_a_retrained_model() -> None:
    evidence = toys.evidence(toys.retrained()[1])
    others = (toys.retrained()[0], toys.retrained()[2])
    assert QUICK.measure(replace(evidence, references=others)).verdict == "as retrain"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_masked_original_relearns_before_every_retrained_model(seed: int) -> None:
    found = QUICK.measure(replace(toys.evidence(toys.masked(), references=3), seed=seed))
    assert found.verdict == "residual"


@pytest.mark.parametrize("form", ["as_is", "reset", "head"])
def test_without_a_step_size_nothing_is_learnt(form: str) -> None:
    sets = toys.sets()
    what = lesson(
        sets["forget"], sets["retain"], sets["test_forget"], sets["test_retain"], shots=5,
        most_tests=20, steps=4, every=1, lr=0.0, seed=0, target=None,
    )  # fmt: skip
    curve = relearn(
        toys.patched(), what, form=form, forgotten=[toys.GONE], device=torch.device("cpu")
    )
    assert curve.steps == [0, 1, 2, 3, 4]
    assert len(set(curve.forgotten)) == len(set(curve.kept)) == 1


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_reset_rows_are_the_mean_of_the_others(kind: str) -> None:
    some = toys.subject(toy(kind).model)
    assert some.view is not None
    affine = some.view.affines[0]
    assert affine.weight is not None
    before = affine.weight.detach().clone()
    reset_rows(some.view, [toys.GONE])
    after = affine.weight.detach()
    assert torch.allclose(after[toys.GONE], before[:3].mean(dim=0))
    assert torch.equal(after[:3], before[:3])
    assert affine.bias is not None
    assert torch.allclose(affine.bias[toys.GONE], affine.bias[:3].mean())


def test_a_masked_original_keeps_what_it_says_about_neighbours() -> None:
    found = OverUnlearning().measure(toys.evidence(toys.masked()))
    assert found.value == pytest.approx(0.0, abs=1e-9)
    assert found.verdict == "as retrain"


def test_an_original_that_still_answers_the_class_is_not_over_forgotten() -> None:
    found = OverUnlearning().measure(toys.evidence(toys.original()))
    assert found.value is not None
    assert found.value > 0.2
    assert found.verdict == "not decidable"
    assert "still says of the forgotten classes" in found.note
    assert found.details["kept_classes_alone"]["original"] == pytest.approx(0.0, abs=1e-9)  # type: ignore[index]


def test_over_unlearning_notices_ruined_neighbours() -> None:
    evidence = toys.evidence(toys.untrained(), references=3)
    assert OverUnlearning().measure(evidence).verdict == "over-forgotten"


@pytest.mark.slow
def test_a_small_attack_finds_a_head_only_edit() -> None:
    found = AdversarialRecovery(radius=8).measure(toys.evidence(references=3))
    assert found.verdict == "residual"
    share = found.details["share"]["unlearned"]  # type: ignore[index]  # a mapping by construction
    assert share["forget"]["8/255"] > share["test_retain"]["8/255"]
    assert found.controls["retrained"] < 0.1


def test_an_attack_stays_in_its_ball() -> None:
    evidence = toys.evidence()
    inputs, _ = images(toys.sets()["forget"], 30, evidence, None)
    assert isinstance(inputs, torch.Tensor)
    limits = value_range([inputs])
    model = toys.original()

    def aim(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(len(logits)).long(), 4).bool()

    with evaluating(model.model):
        answer = answer_of(model, evidence, open_head=False)
        moved = towards(inputs, answer, aim, limits, epsilon=0.05, steps=5)
        assert isinstance(moved, torch.Tensor)
        far = (limits.to_unit(moved) - limits.to_unit(inputs)).abs().max()
        assert float(far) <= 0.05 + 1e-6
        before, after = (logits_over(one, answer)[:, 0].mean() for one in (inputs, moved))
    assert float(after) > float(before)


@pytest.mark.parametrize("head_masked", [False, True])
@pytest.mark.parametrize("half", [("unlearned",), ("original", "unlearned", "retrained")])
def test_attacks_move_images_of_half_precision_models(
    half: tuple[Role, ...], head_masked: bool
) -> None:
    evidence = toys.evidence()
    twins = {
        role: toys.subject(copy.deepcopy(one.model).bfloat16()) if role in half else one
        for role, one in evidence.subjects.items()
    }
    evidence = replace(
        evidence, subjects=twins, references=(twins["retrained"],), head_masked=head_masked
    )
    for metric in (AdversarialRecovery(steps=2, most=4), OverUnlearning(most=4)):
        value = metric.measure(evidence).value
        assert value is not None
        assert 0.0 <= value <= 1.0


def test_a_masked_head_is_opened_for_attacks() -> None:
    evidence = toys.evidence(toys.masked(), head_masked=True)
    found = AdversarialRecovery(steps=3, most=20).measure(evidence)
    assert found.details["head"] == "nearest class mean"
    assert found.value == 1.0


@pytest.mark.slow
def test_a_border_recalls_a_class_of_an_unforgotten_model() -> None:
    found = PromptResurrection(steps=60).measure(toys.evidence(references=3))
    accuracy = found.details["accuracy"]["unlearned"]  # type: ignore[index]  # a mapping by construction
    assert accuracy["test_forget"] > accuracy["test_forget without"]
    assert found.details["border"] == 1
    assert found.details["parameters"] == 28
    nothing = PromptResurrection(steps=0).measure(toys.evidence(references=3))
    plain = toys.evidence().of("unlearned", "test_forget").right.double().mean()
    assert nothing.value == pytest.approx(float(plain))


def test_rounding_that_undoes_an_edit_is_found() -> None:
    model = toy("cnn").model
    with torch.no_grad():
        weights = dict(model.named_parameters())
        # a bias far below what bfloat16 keeps beside a large common offset
        weights["fc.bias"].add_(8192.0)
        weights["fc.bias"][toys.GONE] = 8192.0 - 15.0
    found = Quantisation().measure(toys.evidence(toys.subject(model), references=3))
    details = found.details["accuracy"]["unlearned"]  # type: ignore[index]  # a mapping by construction
    assert details["as is"]["test_forget"] < 0.5
    assert details["bfloat16"]["test_forget"] > 0.9
    assert found.verdict == "residual"
    assert found.details["setting"] == "bfloat16"


def test_what_was_never_gone_cannot_come_back() -> None:
    found = Quantisation().measure(toys.evidence(toys.original(), references=3))
    assert found.verdict == "not decidable"
    assert "still knows the forgotten classes" in found.note
    passed = Quantisation().measure(toys.evidence(toys.retrained()[1], references=3))
    assert (passed.verdict, passed.note) == ("as retrain", "")


def test_rounding_cannot_show_anything_behind_a_mask() -> None:
    found = Quantisation().measure(toys.evidence(toys.masked(), head_masked=True))
    assert found.verdict == "not decidable"
    assert "masked" in found.note


@pytest.mark.parametrize("size", [1, 7])
def test_numbers_do_not_depend_on_the_batch_size(size: int) -> None:
    one = toys.patched()
    again = replace(one, outputs=collect(one.model, toys.sets(), view=one.view, batch_size=size))
    for metric in (Prototype(draws=2), KnowledgeRetention()):
        found = [metric.measure(toys.evidence(which)).value for which in (one, again)]
        assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_the_sgd_form_learns_something() -> None:
    found = KnowledgeRetention(form="sgd").measure(toys.evidence(toys.original()))
    assert found.value == found.controls["original"]
    assert KnowledgeRetention(form="exact").measure(toys.evidence(toys.original())).value == 1.0


def test_prototypes_answer_as_a_nearest_mean_head_and_average_kept_samples_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    averaged: list[int] = []

    def counted(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        averaged.append(len(features))
        return class_means(features, labels, classes)

    monkeypatch.setattr("forgetkit.metrics.prototype.class_means", counted)
    evidence = toys.evidence()
    found = Prototype(shots=5, draws=4).measure(evidence)
    kept = len(evidence.sets["retain"])
    assert [size for size in averaged if size >= kept] == [kept] * len(evidence.subjects)
    own = evidence.subject("unlearned").outputs
    right = []
    for draw in range(4):
        rows = few_shot_rows(own["forget"].labels, 5, evidence.seed + draw)
        features = torch.cat([evidence.features("unlearned", "forget")[rows],
                              evidence.features("unlearned", "retain")]).double()  # fmt: skip
        labels = torch.cat([own["forget"].labels[rows], own["retain"].labels])
        weight, bias = nearest_mean_head(*class_means(features, labels, 4))
        asked = evidence.features("unlearned", "test_forget").double()
        right.append((asked @ weight.T + bias).argmax(dim=1) == own["test_forget"].labels)
    assert found.value == pytest.approx(float(torch.stack(right).double().mean()))


def test_an_unlearned_copy_of_the_original_is_residual_without_a_retrained_model() -> None:
    found = LinearProbe(draws=2).measure(toys.evidence(roles=("original",)))
    assert found.verdict == "residual"


@pytest.mark.parametrize(
    "metric", [LinearProbe(kept=1, draws=2), KnowledgeRetention(kept=1)], ids=slug
)
def test_of_many_kept_classes_a_probe_learns_some(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[tuple[int, ...]] = []

    def fitted(features: Tensor, labels: Tensor, asked: Sequence[Tensor]) -> list[Tensor]:
        learnt.append(tuple(labels.unique().tolist()))
        return probe_predictions(features, labels, asked)

    monkeypatch.setattr(f"forgetkit.metrics.{metric.card.slug}.probe_predictions", fitted)
    found = metric.measure(toys.evidence())
    assert len(set(learnt)) == 1  # the same for every model
    assert toys.GONE in learnt[0]
    assert len(learnt[0]) == 2
    assert "2 classes took part, the kept ones drawn at random" in found.note


def test_a_probe_of_few_kept_classes_takes_all() -> None:
    few, every = (LinearProbe(kept=kept, draws=2).measure(toys.evidence()) for kept in (3, 100))
    assert few.details == every.details
    assert "took part" not in few.note


@pytest.mark.slow
def test_relearning_takes_a_step_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for part in (64, 3):
        monkeypatch.setattr("forgetkit.auditing.relearning.PART", part)
        found.append(QUICK.measure(toys.evidence()).details["curves"])
    whole, parts = (json.loads(json.dumps(one)) for one in found)
    assert whole["reset"]["unlearned"][0]["steps"] == parts["reset"]["unlearned"][0]["steps"]
    for one, other in zip(
        whole["reset"]["retrained"][0]["forgotten"], parts["reset"]["retrained"][0]["forgotten"],
        strict=True,
    ):  # fmt: skip
        assert one == pytest.approx(other, abs=0.05)


def test_relearning_knows_the_head_that_the_caller_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(*args: object) -> object:
        asked.append(args[-1])
        return view_of(*args)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr("forgetkit.auditing.relearning.view_of", watched)
    replace(QUICK, steps=1).measure(replace(toys.evidence(), head="fc"))
    assert set(asked) == {"fc"}


def test_an_area_is_given_for_whole_curves_only() -> None:
    for whole in (False, True):
        curves = replace(QUICK, whole=whole, steps=2).measure(toys.evidence()).details["curves"]
        first = json.loads(json.dumps(curves))["reset"]["unlearned"][0]
        assert ("area" in first) is whole


def test_relearning_without_kept_test_samples_leaves_no_nan() -> None:
    evidence = toys.without(toys.evidence(), "test_retain")
    found = replace(QUICK, steps=1).measure(evidence).to_json()
    assert "nan" not in json.dumps(found).lower()
    curves = found["details"]["curves"]["reset"]["unlearned"]  # type: ignore[index]  # a mapping by construction
    assert [curve["kept"] for curve in curves] == [None]
