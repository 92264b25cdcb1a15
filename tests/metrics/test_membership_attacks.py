"""Membership attacks: they find members of an over-trained model and none where there are none."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_evidence as toys
from torch import Generator, Tensor, nn

from forgetkit.auditing.evidence import Evidence, Missing, Outputs, Subject
from forgetkit.auditing.likelihood import pooled_deviation
from forgetkit.auditing.shadows import Shadows, load_shadows, save_shadows
from forgetkit.errors import DataError
from forgetkit.metric import Metric, Verdict, find_metric
from forgetkit.metrics.lira import LiRA
from forgetkit.metrics.mia_confidence import MiaConfidence
from forgetkit.metrics.mia_loss import MiaLoss
from forgetkit.metrics.neighbour_attack import NeighbourAttack
from forgetkit.metrics.population_attack import PopulationAttack
from forgetkit.metrics.rmia import RMIA
from forgetkit.metrics.ulira import ULiRA

LOSS = MiaLoss(resamples=200)
ATTACKS: tuple[Metric, ...] = (
    LOSS, MiaLoss(protocol="gli", resamples=50), MiaConfidence(resamples=200),
    RMIA(resamples=200), LiRA(resamples=200), NeighbourAttack(resamples=200),
)  # fmt: skip
N, K = 120, 4
LABELS = torch.full((N,), 3)


def name(metric: Metric) -> str:
    return f"{metric.card.slug}-{metric.settings().get('protocol', '')}"


def answers(seed: int, gain: float, classes: int = K) -> Tensor:
    """Logits of n samples of class 3 whose own logit is raised by ``gain``."""
    logits = torch.randn(N, classes, generator=Generator().manual_seed(seed))
    logits[:, 3] += gain
    return logits


def subject(seed: int, forget_gain: float, other_gain: float = 0.0) -> Subject:
    """A model that is surer by ``gain`` on forget and on kept training samples."""

    def made(part: int, gain: float, label: int) -> object:
        logits = torch.randn(N, K, generator=Generator().manual_seed(10 * seed + part))
        logits[:, label] += 1 + gain
        features = torch.randn(N, 5, generator=Generator().manual_seed(10 * seed + part + 5))
        features[:, label] += 2
        return toys.outputs(logits, torch.full((N,), label), features)

    splits = {
        "forget": made(1, forget_gain, 3), "test_forget": made(2, 0.0, 3),
        "retain": made(3, other_gain, 1), "test_retain": made(4, 0.0, 1),
    }  # fmt: skip
    return Subject(nn.Identity(), splits, None)  # type: ignore[arg-type]  # outputs() makes them


def evidence(unlearned: Subject, **more: object) -> Evidence:
    never = [subject(seed, 0.0, 4.0) for seed in range(10, 16)]
    subjects = {"unlearned": unlearned, "original": subject(2, 4.0, 4.0), "retrained": never[0]}
    return Evidence(subjects, {}, "classes", (3,), K, references=never, **more)  # type: ignore[arg-type]  # roles are words


@pytest.mark.parametrize("metric", ATTACKS, ids=name)
def test_attacks_tell_a_residue_from_a_retrained_model(metric: Metric) -> None:
    left = metric.measure(evidence(subject(1, 4.0, 4.0)))
    clean = metric.measure(evidence(subject(3, 0.0, 4.0)))
    assert left.interval is not None
    assert clean.value is not None
    assert left.value is not None
    # all of these models answer the other classes alike, the original too
    blind = metric.card.slug == "neighbour_attack"
    assert clean.verdict == ("not decidable" if blind else "as retrain")
    assert left.value > clean.value
    assert find_metric(left.slug) is type(metric)
    if metric.card.slug not in ("mia_confidence", "neighbour_attack"):
        assert left.value > 0.7
        assert left.interval[0] <= left.value <= left.interval[1]
        assert clean.interval is not None
        assert clean.interval[0] < 0.5 < clean.interval[1]
    if metric.card.slug != "neighbour_attack":  # which looks at the other classes only
        assert left.verdict == "residual"
    assert json.dumps(left.to_json(), allow_nan=False)


@pytest.mark.parametrize("metric", ATTACKS[:5], ids=name)
def test_samples_that_stand_out_the_other_way_are_called_so(metric: Metric) -> None:
    if metric.card.slug == "mia_confidence":
        pytest.skip("a share of called members cannot fall below that of unseen samples by much")
    found = metric.measure(evidence(subject(1, -4.0, 4.0)))
    assert found.verdict == "over-forgotten"
    assert found.value is not None
    assert found.value < 0.3


@pytest.mark.parametrize("metric", [LOSS, MiaConfidence(resamples=200)], ids=name)
def test_every_retrained_model_is_held_against(metric: Metric) -> None:
    """One retrained model that shows as much as the audited one takes the alarm away."""
    left = evidence(subject(1, 4.0, 4.0))
    assert metric.measure(left).verdict == "residual"
    alike = replace(left, references=[*left.references, subject(17, 5.0, 4.0)])
    found = metric.measure(alike)
    # the attack on losses finds no more in the original than in that model: it is blind then
    assert found.verdict == ("not decidable" if metric.card.slug == "mia_loss" else "as retrain")
    assert found.value == metric.measure(left).value
    every = found.details.get("share_of_every_retrained")
    if metric.card.slug == "mia_loss":
        every = found.details["auc_of_further_retrained"]
    assert isinstance(every, list)
    assert max(every) > found.controls["retrained"] + 0.1  # the one that takes the alarm away


def test_an_attack_works_when_it_tells_the_original_from_every_retrained_model() -> None:
    clean = evidence(subject(3, 0.0, 4.0))
    assert LOSS.measure(clean).verdict == "as retrain"
    alike = replace(clean, references=[*clean.references, subject(17, 4.0, 4.0)])
    found = LOSS.measure(alike)
    assert found.verdict == "not decidable"
    assert "no more in the original than in a retrained model" in found.note


@pytest.mark.slow
@pytest.mark.parametrize("metric", ATTACKS, ids=name)
def test_attacks_repeat_themselves(metric: Metric) -> None:
    one = evidence(subject(1, 1.0, 4.0))
    first, again = (json.dumps(metric.measure(one).to_json()) for _ in range(2))
    assert first == again


@pytest.mark.slow
@pytest.mark.parametrize("metric", ATTACKS, ids=name)
def test_identical_models_differ_in_nothing(metric: Metric) -> None:
    one = subject(1, 1.0, 4.0)
    same = replace(
        evidence(one), subjects={"unlearned": one, "original": one, "retrained": one},
        references=[one, subject(12, 0.0, 4.0), subject(13, 0.0, 4.0), subject(14, 0.0)],
    )  # fmt: skip
    found = metric.measure(same)
    assert found.verdict in ("as retrain", "not decidable")
    if metric.card.slug == "neighbour_attack":
        assert found.value == pytest.approx(0.5, abs=0.01)
    else:
        assert found.value == found.controls["retrained"] == found.controls["original"]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ATTACKS, ids=name)
def test_class_names_do_not_matter(metric: Metric) -> None:
    order = torch.tensor([2, 0, 3, 1])  # new name of each class

    def renamed(one: Subject) -> Subject:
        outputs = {
            split: replace(
                found, known_labels=order[found.labels], logits=found.logits[:, order.argsort()]
            )
            for split, found in one.outputs.items()
        }
        return replace(one, outputs=outputs)

    before = evidence(subject(1, 1.0, 4.0))
    after = replace(
        before, subjects={role: renamed(one) for role, one in before.subjects.items()},
        references=[renamed(one) for one in before.references], forget_classes=(1,),
    )  # fmt: skip
    left, right = (metric.measure(one).value for one in (before, after))
    assert left == pytest.approx(right, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ATTACKS, ids=name)
def test_masked_outputs_are_looked_at_over_the_kept_classes(metric: Metric) -> None:
    one = subject(1, 1.0, 4.0)
    outputs = {
        split: replace(found, logits=found.logits.clone().index_fill_(1, torch.tensor([3]), -1e4))
        for split, found in one.outputs.items()
    }
    found = metric.measure(evidence(replace(one, outputs=outputs), head_masked=True))
    plain = metric.measure(evidence(one, head_masked=True))
    assert found.value == pytest.approx(plain.value, abs=1e-6)
    assert json.dumps(found.to_json(), allow_nan=False)


def test_labels_of_masked_outputs_are_refused() -> None:
    with pytest.raises(Missing, match="its output is masked"):
        MiaConfidence(feature="confidence").measure(evidence(subject(1, 0.0), head_masked=True))


@pytest.mark.parametrize("feature", ["entropy", "confidence", "correctness", "modified_entropy"])
@pytest.mark.parametrize("classifier", ["logistic", "svc"])
def test_each_confidence_attack_runs(feature: str, classifier: str) -> None:
    metric = MiaConfidence(feature=feature, classifier=classifier, resamples=50)
    found = metric.measure(evidence(subject(1, 4.0, 4.0)))
    efficacy = found.details["efficacy"]
    assert isinstance(efficacy, dict)
    assert found.value is not None
    assert efficacy["unlearned"] == pytest.approx(1 - found.value)


def test_resamples_of_the_confidence_attack_are_drawn_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = toys.evidence()
    size = len(given.sets["forget"])
    whole = MiaConfidence(resamples=100).measure(given)
    drawn: list[int] = []
    randint = torch.randint

    def watched(high: int, shape: tuple[int, ...], *, generator: Generator) -> Tensor:
        found = randint(high, shape, generator=generator)
        drawn.append(found.numel())
        return found

    monkeypatch.setattr(torch, "randint", watched)
    monkeypatch.setattr("forgetkit.auditing.intervals._AT_ONCE", 7 * size)
    assert MiaConfidence(resamples=100).measure(given) == whole
    assert max(drawn) == 7 * size


def test_the_confidence_attack_learns_from_samples_of_every_part_of_a_sorted_file() -> None:
    def answers(labels: Tensor, seed: int) -> Outputs:
        sharp = torch.nn.functional.one_hot(labels, K) * (1 + 3.0 * labels[:, None])
        noise = torch.randn(len(labels), K, generator=Generator().manual_seed(seed))
        return toys.outputs(sharp + noise, labels)

    train, test = (torch.arange(K).repeat_interleave(count) for count in (600, 50))
    splits = {"forget": answers(LABELS, 1), "test_forget": answers(LABELS, 2),
              "retain": answers(train, 3), "test_retain": answers(test, 4)}  # fmt: skip
    given = Evidence(
        {"unlearned": Subject(nn.Identity(), splits, None)}, {}, "classes", (), K
    )  # fmt: skip
    learnt: list[list[int]] = []

    class Watched(MiaConfidence):
        def _feature(self, evidence: Evidence, outputs: Outputs) -> Tensor:
            learnt.append(outputs.labels.bincount(minlength=K).tolist())
            return super()._feature(evidence, outputs)

    found = Watched(most=100, resamples=50).measure(given)
    members, others = learnt[:2]
    assert sum(members) == sum(others) == found.details["learnt_from"] == 100
    assert min(members + others) > 10


def test_what_is_missing_is_said() -> None:
    one = evidence(subject(1, 0.0))
    few = {
        split: found.take(torch.arange(4))
        for split, found in one.subjects["unlearned"].outputs.items()
    }
    small = replace(one, subjects={"unlearned": Subject(nn.Identity(), few, None)})
    for metric in (LOSS, RMIA(), NeighbourAttack()):
        with pytest.raises(Missing, match=r"needs at least .* found 4"):
            metric.measure(small)
    for other in (RMIA(), LiRA(), NeighbourAttack()):
        with pytest.raises(Missing, match="needs"):
            other.measure(replace(one, subjects={"unlearned": subject(1, 0.0)}, references=()))
    for attack in (ULiRA(), PopulationAttack(booster="histogram")):
        with pytest.raises(Missing, match="needs outputs of shadow models"):
            attack.measure(one)
    alone = LOSS.measure(replace(one, subjects={"unlearned": subject(1, 0.0)}, references=()))
    assert alone.verdict == "not decidable"
    assert "no retrained model" in alone.note


def test_an_attack_that_finds_nothing_in_the_original_shows_nothing() -> None:
    weak = evidence(subject(1, 0.0))
    found = LOSS.measure(replace(weak, subjects={**weak.subjects, "original": subject(5, 0.0)}))
    assert found.verdict == "not decidable"
    assert "no more in the original than in a retrained model" in found.note


@pytest.mark.slow
def test_a_real_edit_is_attacked_without_a_trace() -> None:
    real = toys.evidence(references=3)
    before = toys.state(real.subjects["unlearned"].model)
    for metric in ATTACKS:
        assert metric.measure(real).value is not None
    assert toys.state(real.subjects["unlearned"].model) == before


def test_rmia_tunes_on_the_original_and_says_so() -> None:
    found = RMIA(a=None, resamples=50).measure(evidence(subject(1, 4.0)))
    assert "tuned on the original" in found.note
    assert 0.0 <= float(str(found.details["a"])) <= 1.0


def stored(path: Path, seen: float, unseen: float, unlearned: float, models: int = 12) -> str:
    def many(start: int, gain: float) -> Tensor:
        return torch.stack([answers(start + at, gain) for at in range(models)])

    file = path / "shadows.safetensors"
    save_shadows(Shadows(many(100, seen), many(200, unseen), many(300, unlearned), LABELS), file)
    return str(file)


def asked(gain: float, seed: int = 1) -> Evidence:
    own = Subject(nn.Identity(), {"forget": toys.outputs(answers(seed, gain), LABELS)}, None)
    return Evidence({"unlearned": own}, {}, "classes", (3,), K)


def test_ulira_tells_unlearned_from_never_seen(tmp_path: Path) -> None:
    file = stored(tmp_path, 5.0, 0.0, 3.0)
    found = ULiRA(shadows=file).measure(asked(3.0))
    assert found.verdict == "residual"
    assert found.value is not None
    assert found.value > 0.75
    assert "pooled" in found.note
    same = ULiRA(shadows=stored(tmp_path, 5.0, 0.0, 0.0)).measure(asked(0.0))
    assert same.verdict == "as retrain"
    assert same.value == pytest.approx(0.5, abs=0.06)
    assert same.controls["original"] > 0.9
    blind = ULiRA(shadows=stored(tmp_path, 0.0, 0.0, 0.0)).measure(asked(0.0))
    assert blind.verdict == "not decidable"  # it does not find models that kept the samples either
    assert "finds nothing in models that were trained" in blind.note
    with pytest.raises(Missing, match="found 2 and 2"):
        ULiRA(shadows=stored(tmp_path, 5.0, 0.0, 3.0, models=2)).measure(asked(3.0))


def test_ulira_does_not_take_what_one_training_is_surer_of_for_membership(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    usual = 2 * torch.randn(len(LABELS), generator=draw)

    def trained(models: int, gain: float = 0.0) -> Tensor:
        """Return logits of models that are each surer or less sure of all samples alike."""
        noise = torch.randn(models, len(LABELS), generator=draw)
        shift = torch.randn(models, 1, generator=draw)
        own = usual + noise + shift + gain
        return torch.stack([own, *[torch.zeros_like(own)] * (K - 1)], dim=-1).roll(3, dims=-1)

    alarms = 0
    for number in range(24):
        file = str(tmp_path / f"{number}.safetensors")
        save_shadows(Shadows(trained(48, 4.0), trained(48), trained(48), LABELS), file)
        own = toys.outputs(trained(1)[0], LABELS)
        null = Evidence(
            {"unlearned": Subject(nn.Identity(), {"forget": own}, None)}, {}, "classes", (3,), K
        )
        alarms += ULiRA(shadows=file).measure(null).verdict == "residual"
    assert alarms <= 2  # one in forty is what the interval lets pass


@pytest.mark.parametrize("models", [16, 17])
def test_ulira_judges_every_model_with_a_deviation_of_one_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: int
) -> None:
    pooled: list[Tensor] = []

    def watched(*groups: Tensor) -> Tensor:
        pooled.append(pooled_deviation(*groups))
        return pooled[-1]

    monkeypatch.setattr("forgetkit.auditing.likelihood.pooled_deviation", watched)
    file = stored(tmp_path, 5.0, 0.0, 3.0, models=models)
    found = ULiRA(shadows=file).measure(asked(3.0))
    # the model under audit, and those of the file, each judged by 15 or 16 others of its kind
    assert len(pooled) == (1 + 3 * models if models == 16 else 0)
    assert ("pooled" in found.note) == bool(pooled)


@pytest.mark.parametrize("booster", ["histogram", "xgboost"])
def test_the_population_attack_needs_a_difference(tmp_path: Path, booster: str) -> None:
    if booster == "xgboost":
        pytest.importorskip("xgboost")
    attack = PopulationAttack(shadows=stored(tmp_path, 9.0, 0.0, 9.0), booster=booster)
    found = replace(attack, resamples=50).measure(asked(9.0))
    assert found.value is not None
    assert found.value > 0.95
    assert found.controls["original"] > 0.95
    few = PopulationAttack(shadows=stored(tmp_path, 9.0, 0.0, 9.0, models=6), booster=booster)
    alone = replace(few, resamples=50).measure(asked(9.0))
    assert (alone.interval, alone.verdict) == (None, "not decidable")
    attack = PopulationAttack(shadows=stored(tmp_path, 1.0, 1.0, 1.0), booster=booster)
    found = replace(attack, resamples=50).measure(asked(1.0))
    assert found.value == pytest.approx(0.5, abs=0.05)


@pytest.mark.skipif(importlib.util.find_spec("xgboost") is not None, reason="xgboost is installed")
def test_the_paper_s_trees_are_not_replaced_silently(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"pip install forgetkit\[audit\]"):
        PopulationAttack(shadows=stored(tmp_path, 1.0, 0.0, 1.0)).measure(asked(0.0))


def test_shadows_of_another_set_are_refused(tmp_path: Path) -> None:
    file = stored(tmp_path, 1.0, 0.0, 1.0)
    found = load_shadows(file, LABELS)
    assert found.seen.shape == (12, N, K)
    with pytest.raises(DataError, match="expected the labels of the forget set under audit"):
        load_shadows(file, LABELS[:-1])
    with pytest.raises(DataError, match="expected a safetensors file, found none"):
        load_shadows(tmp_path / "nothing", LABELS)
    with pytest.raises(DataError, match="expected logits"):
        Shadows(found.seen[:, :5], found.unseen, found.unlearned, LABELS)


@pytest.mark.parametrize(
    ("original", "verdict", "reason"),
    [
        ("leans", "as retrain", ""),
        ("alike", "not decidable", "finds nothing in the original"),
        ("none", "not decidable", "no original to show"),
    ],
)
def test_the_neighbour_attack_has_to_work_on_the_original(
    original: str, verdict: Verdict, reason: str
) -> None:
    given = evidence(subject(3, 0.0, 4.0))
    subjects = dict(given.subjects)
    if original == "none":
        del subjects["original"]
    if original == "leans":  # towards class 0, among those that are kept
        old = subjects["original"].outputs["forget"]
        lean = replace(old, logits=old.logits + torch.tensor([3.0, 0.0, 0.0, 0.0]))
        outputs = {**subjects["original"].outputs, "forget": lean}
        subjects["original"] = replace(subjects["original"], outputs=outputs)
    found = NeighbourAttack(resamples=200).measure(replace(given, subjects=subjects))
    assert found.verdict == verdict
    assert reason in found.note


def test_the_neighbour_attack_holds_against_every_further_retrained_model() -> None:
    given = toys.evidence(toys.patched(), references=1)
    first = given.subject("retrained")
    two = replace(given, references=(first, replace(first, model=nn.Identity())))
    metric = NeighbourAttack(resamples=200)
    few = metric.measure(two)
    assert few.verdict == "not decidable"
    assert "three are needed to judge this, and 2 were given" in few.note
    two = replace(two, references=(*two.references, replace(first, model=nn.Identity())))
    assert metric.measure(two).verdict == "residual"
    # one that answers as differently from the first as the audited model does
    odd = replace(toys.patched(), model=nn.Identity())
    three = replace(two, references=(*two.references, odd))
    found = metric.measure(three)
    assert found.verdict == "as retrain"
    assert found.details["auc"]["retrained 4"] == found.value  # type: ignore[index]  # a mapping
    assert set(found.controls) == {"original", "retrained"}
