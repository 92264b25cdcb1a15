"""Which samples attacks compare: the same class mix, and for wrong labels the same wrong label."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy_evidence as toys
from torch import Generator, Tensor, nn

from forgetkit.auditing.attacks import matched_rows
from forgetkit.auditing.evidence import Evidence, Missing, Outputs, Role, Subject
from forgetkit.auditing.excess import unlike_retrain
from forgetkit.auditing.loss_attack import member_losses
from forgetkit.auditing.members import attacked, groups
from forgetkit.data.sets import StoredSet
from forgetkit.metric import Metric
from forgetkit.metrics.entropy import Entropy
from forgetkit.metrics.forgetting_score import ForgettingScore
from forgetkit.metrics.lira import LiRA
from forgetkit.metrics.loss_distance import LossDistance
from forgetkit.metrics.mia_confidence import MiaConfidence
from forgetkit.metrics.mia_loss import MiaLoss

K = 4


def made(labels: Tensor, gain: Tensor | float, at: Tensor, seed: int) -> Outputs:
    """Return noise with a higher logit of class ``at`` for each sample."""
    logits = torch.randn(len(labels), K, generator=Generator().manual_seed(seed))
    rows = torch.arange(len(labels))
    logits[rows, at] += torch.as_tensor(gain, dtype=torch.float32)
    return toys.outputs(logits, labels)


def test_rows_are_matched_class_by_class() -> None:
    members, others = torch.tensor([0, 1, 0, 2, 0, 3]), torch.tensor([2, 0, 0, 1, 1, 4])
    first, second = matched_rows(members, others, seed=0)
    assert members[first].tolist() == others[second].tolist() == [0, 0, 1, 2]
    again = matched_rows(members, others, seed=0)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert [len(rows) for rows in matched_rows(members, torch.tensor([7]), seed=0)] == [0, 0]


def mixed(seed: int) -> Subject:
    """A model that saw neither set and is surer about class 0; the sets hold other shares of it."""
    forget = torch.cat([torch.zeros(180), torch.ones(20)]).long()
    unseen = torch.cat([torch.zeros(200), torch.ones(200)]).long()
    outputs = {
        name: made(labels, 4.0 * (labels == 0), labels, seed + part)
        for part, (name, labels) in enumerate((("forget", forget), ("test_forget", unseen)))
    }
    return Subject(nn.Identity(), outputs, None)


def test_another_class_mix_is_not_taken_for_membership() -> None:
    roles: tuple[Role, ...] = ("unlearned", "original", "retrained")
    subjects = {role: mixed(10 * at) for at, role in enumerate(roles)}
    evidence = Evidence(subjects, {}, "instances", (0, 1), K)
    found = MiaLoss().measure(evidence)
    assert found.value == pytest.approx(0.5, abs=0.06)
    assert found.samples == 400
    score = ForgettingScore().measure(evidence).value
    assert score is not None
    assert score < 0.06
    distance = LossDistance().measure(evidence).value
    assert distance is not None
    assert distance < 0.3


def drawn(shift: float, seed: int) -> Subject:
    """A model that saw neither set; class 1 is answered otherwise by every training."""
    forget = torch.cat([torch.zeros(180), torch.ones(20)]).long()
    unseen = torch.cat([torch.zeros(100), torch.ones(100)]).long()
    outputs = {}
    for part, (name, labels) in enumerate((("forget", forget), ("test_forget", unseen))):
        usual = torch.randn(len(labels), generator=Generator().manual_seed(part))
        noise = torch.randn(len(labels), generator=Generator().manual_seed(seed + part))
        logits = torch.full((len(labels), K), -40.0)
        logits[:, 2] = 0.0
        own = usual + torch.where(labels == 1, 3.0, 0.3) * noise + shift
        logits[torch.arange(len(labels)), labels] = own
        outputs[name] = toys.outputs(logits, labels)
    return Subject(nn.Identity(), outputs, None)


def test_lira_measures_members_and_others_by_one_deviation() -> None:
    subjects: dict[Role, Subject] = {
        "unlearned": drawn(1.0, 10),  # surer of all samples alike: nothing tells members
        "original": drawn(0.0, 20),
        "retrained": drawn(0.0, 30),
    }
    others = [drawn(0.0, seed) for seed in (40, 50, 60, 70)]
    found = LiRA().measure(
        Evidence(subjects, {}, "classes", (0, 1), K, [subjects["retrained"], *others])
    )
    assert found.value == pytest.approx(0.5, abs=0.08)
    assert found.verdict != "residual"


OLD = torch.arange(80) % 4
NEW = (OLD + 1) % 4


def relabelled(*, memorises: bool, seed: int) -> Subject:
    """A model of samples of class NEW that came with the label OLD, known by heart or not."""
    tests = torch.arange(400) % 4
    split = {"forget": made(OLD, 6.0 if memorises else 3.0, OLD if memorises else NEW, seed)}
    split["test_forget"] = made(tests, 3.0, tests, seed + 1)
    return Subject(nn.Identity(), split, None)


def about_labels(unlearned: Subject, new: Tensor | None = NEW) -> Evidence:
    forget = StoredSet(torch.zeros(80, 1), OLD, new_labels=new)
    subjects: dict[Role, Subject] = {
        "unlearned": unlearned,
        "original": relabelled(memorises=True, seed=50),
        "retrained": relabelled(memorises=False, seed=60),
    }
    return Evidence(subjects, {"forget": forget}, "relabel", (0, 1, 2, 3), K)


def test_a_wrong_label_is_held_against_the_same_label_on_unseen_images_of_the_class() -> None:
    evidence = about_labels(relabelled(memorises=True, seed=1))
    chosen = groups(evidence)
    members, others = chosen.of(evidence.subjects["unlearned"])
    tests = torch.arange(400) % 4
    assert torch.equal(members.labels, others.labels)
    assert torch.equal(tests[chosen.others], NEW[chosen.members])
    left = MiaLoss().measure(evidence)
    assert left.value is not None
    assert left.value > 0.95
    assert left.verdict == "residual"
    gone = MiaLoss().measure(about_labels(relabelled(memorises=False, seed=3)))
    assert gone.value == pytest.approx(0.5, abs=0.1)
    assert gone.verdict == "as retrain"


def test_without_the_right_labels_nothing_can_be_paired() -> None:
    evidence = about_labels(relabelled(memorises=True, seed=1))
    blind = about_labels(relabelled(memorises=True, seed=1), None)
    with pytest.raises(Missing, match="the right labels are not known"):
        MiaLoss().measure(replace(blind, goal="depoison"))
    with pytest.raises(Missing, match="labels of their own"):
        LiRA().measure(evidence)


def test_behind_a_masked_head_entropies_stand_for_losses() -> None:
    labels = torch.full((40,), 3)
    logits = torch.randn(40, K)
    logits[:, 3] = -torch.inf
    outputs = {"forget": toys.outputs(logits, labels), "test_forget": toys.outputs(logits, labels)}
    masked = Evidence(
        {"unlearned": Subject(nn.Identity(), outputs, None)}, {}, "classes", (3,), K,
        head_masked=True,
    )  # fmt: skip
    forget, unseen = member_losses(masked, "unlearned")
    kept = logits[:, :3].double().log_softmax(dim=1)
    expected = -(kept.exp() * kept).sum(dim=1)
    assert torch.allclose(forget.sort().values, expected.sort().values)
    assert len(unseen) == 40
    for metric in (ForgettingScore(), LossDistance()):
        assert "entropies" in metric.measure(masked).note


@pytest.mark.parametrize("metric", [Entropy(), MiaConfidence()], ids=lambda m: m.card.slug)
def test_few_samples_decide_nothing(metric: Metric) -> None:
    few = toys.evidence(toys.patched(), references=4)
    forget = {
        role: replace(
            one, outputs={**one.outputs, "forget": one.outputs["forget"].take(torch.arange(1))}
        )
        for role, one in few.subjects.items()
    }
    others = [
        replace(one, outputs={**one.outputs, "forget": one.outputs["forget"].take(torch.arange(1))})
        for one in few.references
    ]
    found = metric.measure(replace(few, subjects=forget, references=others))
    assert found.verdict == "not decidable"


def test_an_attack_that_was_never_tried_on_the_original_decides_nothing() -> None:
    drawn = torch.full((100,), 0.5, dtype=torch.float64)
    assert unlike_retrain(drawn, [drawn], True)[0] == "as retrain"
    assert unlike_retrain(drawn, [drawn], None)[0] == "not decidable"
    assert unlike_retrain(drawn, [drawn], False)[0] == "not decidable"


def test_confidences_learn_from_tests_of_every_class_when_samples_were_forgotten() -> None:
    labels = torch.arange(80) % 4
    split = {
        name: made(labels, gain, labels, at)
        for at, (name, gain) in enumerate((("forget", 6.0), ("retain", 6.0), ("test_forget", 1.0)))
    }
    roles: tuple[Role, ...] = ("unlearned", "original")
    subject = Subject(nn.Identity(), split, None)
    evidence = Evidence(dict.fromkeys(roles, subject), {}, "instances", (0, 1, 2, 3), K)
    found = MiaConfidence().measure(evidence)
    assert found.value is not None
    assert found.value > 0.7


def test_several_labels_a_sample_are_refused_in_a_sentence() -> None:
    many = Outputs(torch.randn(20, K), torch.ones(20, K), None, torch.arange(20))
    subject = Subject(nn.Identity(), {"forget": many, "test_forget": many, "retain": many}, None)
    evidence = Evidence({"unlearned": subject}, {}, "instances", (), K)
    for metric in (MiaLoss(), MiaConfidence()):
        with pytest.raises(Missing, match="one class each"):
            metric.measure(evidence)


def test_an_attack_that_sees_no_more_in_the_original_than_in_a_retrained_model_is_no_proof() -> (
    None
):
    generator = Generator().manual_seed(0)
    members, others = (
        torch.randn(200, generator=generator) + 1,
        torch.randn(200, generator=generator),
    )
    biased = (members, others)  # easier samples, whatever was trained on
    found = attacked({"unlearned": biased, "original": biased, "retrained": biased}, resamples=50)
    assert found.intervals["original"][0] > 0.5
    assert found.verdict == "not decidable"
    assert "no more in the original than in a retrained model" in found.note
    known = (members + 2, others)
    works = attacked({"unlearned": biased, "original": known, "retrained": biased}, resamples=50)
    assert works.verdict == "as retrain"
    assert attacked({"unlearned": known, "original": known}, resamples=50).note == (
        "no retrained model to compare with"
    )
