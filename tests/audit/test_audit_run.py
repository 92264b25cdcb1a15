"""The audit as a whole: what it runs, what it says is missing, what it leaves behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from forgetkit import (
    Audit,
    BadHyperparameter,
    BadTarget,
    CannotSplitModel,
    DataError,
    ModelError,
    PatchMismatch,
    adapt,
    audit,
    forget,
)
from forgetkit.auditing import inputs
from forgetkit.auditing.evidence import Evidence, Missing
from forgetkit.auditing.verdict import (
    HEAD_ONLY,
    LAST,
    MASKED,
    OUTPUT_ONLY,
    UNCHANGED,
    Circumstances,
    verdict,
)
from forgetkit.data.described import described
from forgetkit.fields import bounded
from forgetkit.fingerprint import digest
from forgetkit.goal import Depoison, Goal, Instances, Relabel
from forgetkit.metric import Finding, Group, Level, Metric, MetricCard, Reads, Verdict
from forgetkit.testing import TOYS, toy

GONE = 3
BANNED = ("removed", "certif", "deleted", "erased")


def card(
    slug: str, group: Group = "score", level: Level = "quick", reads: Reads | None = None
) -> MetricCard:
    return MetricCard(
        slug=slug, title=slug.capitalize(), group=group, level=level, range="[0, 1]", good="1",
        bad=f"{slug} is bad.", needs="nothing", cost="none", source="tests",
        link="https://example.org", about="Measures nothing.",
        reads=reads,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answers(Metric):
    """Accuracy on the samples to forget, and a random number that depends on the seed alone."""

    card: ClassVar[MetricCard] = card("answers", "accuracy")
    share: float = bounded(0.5, 0.0, 1.0, "a share of something")

    def measure(self, evidence: Evidence) -> Finding:
        found = evidence.of("unlearned", "forget")
        return self.finding(
            float(found.right.double().mean()), samples=len(found), verdict="as retrain",
            controls={
                role: float(subject.outputs["forget"].right.double().mean())
                for role, subject in evidence.subjects.items() if role != "unlearned"
            },
            details={
                "drawn": float(torch.rand(())), "losses": found.losses.tolist(),
                "kept": {name: len(samples) for name, samples in evidence.sets.items()},
                "index": evidence.of("unlearned", "forget").index,
            },
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Infinite(Metric):
    """Infinite, which JSON cannot hold."""

    card: ClassVar[MetricCard] = card("infinite")

    def measure(self, evidence: Evidence) -> Finding:
        return self.finding(float("inf"), samples=1, interval=(0.0, float("inf")))


@dataclass(frozen=True, kw_only=True)
class NotANumber(Metric):
    """NaN."""

    card: ClassVar[MetricCard] = card("not_a_number")

    def measure(self, evidence: Evidence) -> Finding:
        return self.finding(float("nan"), samples=1)


@dataclass(frozen=True, kw_only=True)
class Broken(Metric):
    """Raises what no metric should."""

    card: ClassVar[MetricCard] = card("broken")

    def measure(self, evidence: Evidence) -> Finding:
        raise ZeroDivisionError("nothing to divide by")


@dataclass(frozen=True, kw_only=True)
class Wanting(Metric):
    """Needs what is never there."""

    card: ClassVar[MetricCard] = card("wanting", "audit")

    def measure(self, evidence: Evidence) -> Finding:
        raise Missing("needs the moon, which was not given")


@dataclass(frozen=True, kw_only=True)
class Impatient(Metric):
    """Is interrupted."""

    card: ClassVar[MetricCard] = card("impatient")

    def measure(self, evidence: Evidence) -> Finding:
        raise KeyboardInterrupt


def unseen() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(toy("cnn").test, batch_size=64)


def loader_of(rows: Callable[[Tensor], Tensor], size: int = 32) -> DataLoader[tuple[Tensor, ...]]:
    images, labels = toy("cnn").train.tensors
    chosen = rows(labels)
    return DataLoader(TensorDataset(images[chosen], labels[chosen]), batch_size=size)


def retrained(seed: int) -> nn.Module:
    images, labels = toy("cnn").train.tensors
    return trained(seed, images[labels != GONE], labels[labels != GONE])


def retrained_on_all(seed: int) -> nn.Module:
    images, labels = toy("cnn").train.tensors
    return trained(seed, images[20:], labels[20:])


def trained(seed: int, images: Tensor, labels: Tensor) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TOYS["cnn"]()
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(6):
            for rows in torch.randperm(len(labels)).split(32):
                loss = functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model


@pytest.fixture(scope="module")
def hidden() -> Audit:
    some = toy("cnn")
    forget(some.model).classes([GONE]).using("lau").on("cpu").run(some.loader())
    return audit(
        some.model, forget=some.loader(), test=unseen(), classes=[GONE], device="cpu",
        original=toy("cnn").model, reference=[retrained(1), retrained(2)],
        metrics=["accuracy", "us", "layer_distance", "linear_probe", Wanting()],
    )  # fmt: skip


def test_a_head_edit_is_called_hidden(hidden: Audit) -> None:
    assert hidden.head_only is True
    assert hidden.changed == ["fc.weight", "fc.bias"]
    assert hidden["accuracy"].value == 0.0
    assert hidden["linear_probe"].verdict == "residual"
    assert hidden.verdict[0].startswith("Hidden, not gone: the model no longer answers")
    assert "class 3" in hidden.verdict[0]
    assert HEAD_ONLY in hidden.verdict
    assert not any(word in hidden.summary.lower() for word in BANNED)
    assert hidden.models == {"unlearned": 1, "original": 1, "retrained": 2, "untrained": 1}
    assert hidden.samples == {"forget": 60, "retain": 180, "test_forget": 60, "test_retain": 180}


def test_the_record_comes_back_from_its_file(hidden: Audit, tmp_path: Path) -> None:
    file = hidden.save(tmp_path / "audit.json")
    again = Audit.load(file)
    assert again.to_json() == hidden.to_json()
    assert again.markdown() == hidden.markdown()
    assert repr(again) == repr(hidden)
    assert [entry.name for entry in tmp_path.iterdir()] == ["audit.json"]
    record = json.loads(file.read_text())
    assert record["seed"] == 0
    assert set(record["versions"]) >= {"python", "torch"}
    assert set(record["fingerprints"]) == {"model", "original", "retrained", "forget set"}
    assert set(record["metric_seconds"]) == {f.slug for f in hidden.findings}
    assert set(record["seconds"]) == {"read", "fingerprint", "collect"}
    assert record["estimated_seconds"] > 0


def test_every_number_of_the_report_is_in_the_record(hidden: Audit) -> None:
    text = hidden.markdown()
    for finding in hidden.findings:
        assert hidden.cards[finding.slug].title in text
        if finding.verdict == "not run":
            assert finding.note in text
        else:
            assert finding.value is not None
            assert f"| {finding.value:.4g} |" in text
            assert f"| {finding.samples} |" in text
    assert "## Not run" in text
    assert hidden.cards["linear_probe"].bad in text
    table = repr(hidden)
    assert "Few-shot linear probe" in table
    assert "residual" in table
    assert hidden.summary.endswith(LAST)


@dataclass(frozen=True, kw_only=True)
class Seeing(Metric):
    """Finds the class where more than a share of its samples is right."""

    card: ClassVar[MetricCard] = card("seeing", "attack")
    limit: float = bounded(0.5, 0.0, 1.0, "share that counts as found")
    fails: float = bounded(0.0, 0.0, 1.0, "whether it cannot look at the original")

    def measure(self, evidence: Evidence) -> Finding:
        if evidence.control and self.fails:
            raise Missing("needs the moon, which was not given")
        share = float(evidence.of("unlearned", "forget").right.double().mean())
        found: Verdict = "residual" if share > self.limit else "as retrain"
        return self.finding(share, samples=60, verdict=found, note="what it says")


@dataclass(frozen=True, kw_only=True)
class Low(Metric):
    """Calls a model over-forgotten that is right too rarely."""

    card: ClassVar[MetricCard] = card("low", "attack")
    least: float = bounded(0.5, 0.0, 1.1, "share below which too much was forgotten")

    def measure(self, evidence: Evidence) -> Finding:
        share = float(evidence.of("unlearned", "forget").right.double().mean())
        found: Verdict = "over-forgotten" if share < self.least else "as retrain"
        return self.finding(share, samples=60, verdict=found, note="what it says")


def masked() -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Return a model that never answers a class, what to audit it with, and the original."""
    some = toy("cnn")
    with torch.no_grad():
        some.model.fc.bias[GONE] -= 50  # type: ignore[union-attr, operator, index]
    words: dict[str, Any] = {
        "forget": some.loader(), "classes": [GONE], "device": "cpu", "untrained": False,
    }  # fmt: skip
    return some.model, words, {"original": toy("cnn").model}


def test_an_original_that_forgot_nothing_takes_an_accusation_back() -> None:
    model, words, before = masked()
    right = audit(model, metrics=[Low()], **words, **before)
    assert right["low"].verdict == "over-forgotten"
    assert right["low"].note == "what it says"
    wrong = audit(model, metrics=[Low(least=1.1)], **words, **before)
    assert wrong["low"].verdict == "not decidable"
    assert wrong["low"].note == (
        "the original, which forgot nothing, is over-forgotten by this check, too; what it says"
    )
    assert wrong["low"].value == 0.0
    assert audit(model, metrics=[Low(least=1.1)], **words)["low"].verdict == "over-forgotten"


def test_a_check_is_tried_on_the_original_before_it_gives_the_all_clear() -> None:
    model, words, before = masked()
    works = audit(model, metrics=[Seeing()], **words, **before)
    assert works["seeing"].verdict == "as retrain"
    assert works["seeing"].note == "what it says"
    assert works["seeing"].value == 0.0
    assert works.verdict[0].endswith("not trained on class 3.")
    blind = audit(model, metrics=[Seeing(limit=1.0)], **words, **before)
    assert blind["seeing"].verdict == "not decidable"
    assert blind["seeing"].note.startswith("the original passes this check too")
    assert blind["seeing"].value == 0.0
    assert "Not decidable, because the original passes too: Seeing." in blind.verdict
    alone = audit(model, metrics=[Seeing()], **words)
    assert alone["seeing"].verdict == "as retrain"
    assert "No check was tried on the original" in alone.verdict[0]
    failed = audit(model, metrics=[Seeing(fails=1.0)], **words, **before)
    assert failed["seeing"].note.startswith("not tried on the original: needs the moon")
    assert "No check was tried on the original" in failed.verdict[0]


def test_a_model_that_forgot_nothing_gets_no_all_clear() -> None:
    some = toy("cnn")
    with torch.no_grad():
        for weight in some.model.parameters():
            weight.add_(1e-7)
    rows = torch.arange(20)
    images, labels = some.train.tensors
    few = DataLoader(TensorDataset(images[rows], labels[rows]), batch_size=20)
    for model in (some.model, toy("cnn").model):
        found = audit(
            model, forget=few, retain=some.loader(), test=unseen(), device="cpu",
            original=toy("cnn").model, reference=[retrained_on_all(1), retrained_on_all(2)],
            metrics=["accuracy", "top_k_accuracy", "kl", "completeness", "streisand"],
        )  # fmt: skip
        assert not any(finding.verdict == "as retrain" for finding in found.findings)
        assert any("original passes" in finding.note for finding in found.findings)
        assert "As far as tested" not in found.summary


def test_what_is_wanting_or_broken_does_not_stop_the_rest() -> None:
    some = toy("cnn")
    found = audit(
        some.model, forget=some.loader(), classes=[GONE], device="cpu",
        metrics=[Broken(), Wanting(), NotANumber(), Infinite(), Answers(share=0.25)],
    )  # fmt: skip
    assert found["broken"].verdict == "not run"
    assert found["broken"].note == "an error stopped it: ZeroDivisionError: nothing to divide by"
    assert found["wanting"].note == "needs the moon, which was not given"
    assert found["not_a_number"].value is None
    assert found["not_a_number"].verdict == "not run"
    assert found["answers"].value == 1.0
    assert found["answers"].settings == {"share": 0.25}
    assert not found.partial
    assert "Not tested, for want of data or models: Wanting." in found.verdict
    assert "Not tested, because an error stopped them: Broken." in found.verdict
    assert Audit.from_json(found.to_json())["broken"].cause == "failed"
    assert Audit.from_json(found.to_json())["infinite"].value == float("inf")
    assert Audit.from_json(found.to_json())["infinite"].interval == (0.0, float("inf"))
    with pytest.raises(KeyError):
        found["nothing"]


@pytest.mark.parametrize("whose", ["unlearned", "retrained"])
def test_a_model_that_answers_nan_gets_no_numbers_and_no_all_clear(whose: str) -> None:
    some = toy("cnn")
    broken = copy.deepcopy(some.model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    model, reference = (broken, retrained(1)) if whose == "unlearned" else (some.model, broken)
    found = audit(
        model, forget=some.loader(), classes=[GONE], reference=[retrained(2), reference],
        level="quick", device="cpu",
    )  # fmt: skip
    assert {finding.verdict for finding in found.findings} == {"not run"}
    wanted = f"the {whose} model answers NaN or infinity to the samples to forget"
    assert all(wanted in finding.note for finding in found.findings)
    assert any(wanted in line for line in found.missing)
    assert not any("behaves as one that was not trained" in line for line in found.verdict)


class Scaled(nn.Module):
    """Divides by a weight that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.scale)

    def forward(self, logits: Tensor) -> Tensor:
        return logits / self.scale


def test_an_untrained_twin_that_answers_no_numbers_is_left_out() -> None:
    some = toy("cnn")
    model = nn.Sequential(some.model, Scaled())
    found = audit(model, forget=some.loader(), classes=[GONE], level="quick", device="cpu")
    assert any("no untrained twin: it answers NaN or infinity" in line for line in found.missing)
    assert found["accuracy"].value == pytest.approx(some.accuracy(some.train, [GONE]))


def test_ctrl_c_leaves_a_valid_partial_record(tmp_path: Path) -> None:
    some = toy("cnn")
    found = audit(
        some.model, forget=some.loader(), classes=[GONE], device="cpu",
        metrics=[Answers(), Impatient(), Infinite()],
    )  # fmt: skip
    assert found.partial
    assert found["answers"].value == 1.0
    assert [found[name].verdict for name in ("impatient", "infinite")] == ["not run"] * 2
    assert "interrupted" in found["infinite"].note
    late = f"{found.cards['impatient'].title}, {found.cards['infinite'].title}"
    assert f"Not tested, because the audit was interrupted: {late}." in found.verdict
    assert "for want of" not in found.summary
    assert Audit.load(found.save(tmp_path / "partial.json")).partial


class Interrupting(Dataset[tuple[Tensor, int]]):
    """Ctrl-C while it is read for the second time."""

    def __init__(self) -> None:
        self.targets = [index % 4 for index in range(8)]
        self.left = 6

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return torch.zeros(1, 8, 8), index % 4


def test_ctrl_c_while_reading_leaves_a_record_too() -> None:
    found = audit(
        toy("cnn").model, forget=DataLoader(Interrupting(), batch_size=2), classes=[GONE],
        device="cpu", metrics=[Answers()],
    )  # fmt: skip
    assert found.partial
    assert found["answers"].verdict == "not run"
    assert "Nothing was tested." in found.verdict
    assert json.dumps(found.to_json(), allow_nan=False)


def test_what_does_not_apply_to_the_request_is_no_want_of_data() -> None:
    some = toy("cnn")
    found = audit(
        some.model, forget=some.forget_loader(), retain=some.loader(), test=unseen(),
        metrics=["accuracy", "us", "linear_probe", "kl"], device="cpu",
    )  # fmt: skip
    apart = f"{found.cards['us'].title}, {found.cards['linear_probe'].title}"
    assert f"Not tested, because they do not apply to this request: {apart}." in found.verdict
    wanting = found.cards["kl"].title
    assert f"Not tested, for want of data or models: {wanting}." in found.verdict


CHECKS = ("accuracy", "us", "mia_loss", "linear_probe")


def test_without_a_test_set_less_is_tested() -> None:
    some = toy("cnn")
    found = audit(
        some.model, forget=some.loader(), classes=[GONE], metrics=CHECKS, device="cpu"
    )  # fmt: skip
    assert any(sentence.startswith("no test set") for sentence in found.missing)
    assert any(sentence.startswith("no original model") for sentence in found.missing)
    assert any(sentence.startswith("no model retrained") for sentence in found.missing)
    assert found["accuracy"].verdict != "not run"
    assert [found[name].verdict for name in CHECKS[1:]] == ["not run"] * 3
    assert OUTPUT_ONLY in found.verdict
    assert found.head_only is None
    assert found.markdown().count("no test set") == 1


def test_without_a_retain_set_less_is_tested() -> None:
    some = toy("cnn")
    found = audit(
        some.model, forget=some.forget_loader(), test=unseen(), classes=[GONE],
        metrics=CHECKS, device="cpu",
    )  # fmt: skip
    assert [s for s in found.missing if s.startswith("no training samples to keep")]
    assert found.samples == {"forget": 60, "test_forget": 60, "test_retain": 180}
    assert found["us"].verdict != "not run"


def test_without_a_forget_set_the_answers_to_test_samples_are_left() -> None:
    found = audit(toy("cnn").model, test=unseen(), classes=[GONE], metrics=CHECKS, device="cpu")
    assert found.samples == {"test_forget": 60, "test_retain": 180}
    assert [s for s in found.missing if s.startswith("no samples to forget")]
    assert found["us"].value is not None
    assert found["accuracy"].verdict == "not run"
    assert "forget set" not in found.fingerprints
    kept = audit(
        toy("cnn").model, retain=toy("cnn").loader(), classes=[GONE], metrics=CHECKS, device="cpu"
    )
    assert kept.samples == {"retain": 180}


def test_one_sample_to_forget_is_said_to_show_little() -> None:
    images, labels = toy("cnn").train.tensors
    one = DataLoader(TensorDataset(images[:1], labels[:1]))
    found = audit(toy("cnn").model, forget=one, test=unseen(), device="cpu", metrics=CHECKS)
    assert [s for s in found.missing if s.startswith("one sample to forget")]
    assert found.goal == {"goal": "instances", "positions": None}
    assert found.target == "the one sample of the forget set"
    assert found.forget_classes == (int(labels[0]),)
    assert json.dumps(found.to_json(), allow_nan=False)
    assert all(f.value is None or f.value == f.value for f in found.findings)


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (Relabel({0: 2, 5: 3, 9: 3}), "the wrong labels of 3 samples"),
        (Depoison([4]), "the wrong labels of the one sample of the forget set"),
        (Instances([4, 5]), "2 samples"),
    ],
)
def test_what_was_to_be_forgotten_is_said_in_short(goal: Goal, words: str) -> None:
    found = audit(
        toy("cnn").model, forget=toy("cnn").loader(), device="cpu", goal=goal, metrics=[Answers()]
    )
    assert found.target == words


class Pictures(Dataset[Tensor]):
    """Images without labels."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._images = torch.cat(batches)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


class Named(TensorDataset):
    """A data set that tells where it comes from, as torchvision's do."""

    def __init__(self, data: TensorDataset, *, train: bool) -> None:
        super().__init__(*data.tensors)
        self.root, self.train = "pictures", train


def test_the_record_names_the_source_of_each_set() -> None:
    some = toy("cnn")
    training, test = Named(some.train, train=True), Named(some.test, train=False)

    def source(**given: Any) -> str:  # noqa: ANN401
        found = audit(
            some.model, **given, classes=[GONE], device="cpu", untrained=False,
            metrics=["accuracy"],
        )  # fmt: skip
        (note,) = (note for note in found.notes if note.startswith("sources: "))
        assert note in found.markdown()
        return note.removeprefix("sources: ")

    assert source(forget=DataLoader(training, batch_size=64), test=DataLoader(test, 64)) == (
        "the samples to forget and training samples to keep: Named in pictures, split train; test "
        "samples of the forgotten classes and test samples of the other classes: Named in "
        "pictures, split test"
    )
    own = source(test=DataLoader(Subset(test, range(200)), batch_size=64))
    assert own.endswith("200 samples of Named in pictures, split test")
    images, labels = some.train.tensors
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    assert "training samples to keep: given by the caller (list)" in source(forget=batches)
    both: ConcatDataset[Any] = ConcatDataset([training, some.test])
    assert described(DataLoader(both)) == (
        "Named in pictures, split train with given by the caller (TensorDataset)"
    )


def images_alone(only: int | None = None) -> list[Tensor]:
    images, labels = toy("cnn").train.tensors
    return list((images if only is None else images[labels == only]).split(16))


def test_without_labels_what_needs_none_is_tested() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    kept = DataLoader(TensorDataset(images[labels != GONE], labels[labels != GONE]), batch_size=16)
    found = audit(
        some.model, forget=images_alone(GONE), retain=kept, test=unseen(),
        original=some.model, classes=[GONE], device="cpu", untrained=False,
        metrics=[*CHECKS, "entropy", "relearn_time"],
    )  # fmt: skip
    assert found.samples["forget"] == 60
    assert found.forget_classes == (GONE,)
    assert [s for s in found.missing if s.startswith("no labels of the samples to forget")]
    assert [s for s in found.notes if s.startswith("the samples to forget came without labels")]
    for slug in ("accuracy", "linear_probe", "relearn_time"):
        assert found[slug].verdict == "not run"
        assert "labels" in found[slug].note
    assert found["entropy"].value is not None
    labelled = audit(
        some.model, forget=some.forget_loader(), retain=kept, test=unseen(),
        original=some.model, classes=[GONE], device="cpu", untrained=False,
        metrics=["entropy"],
    )  # fmt: skip
    assert found["entropy"].value == labelled["entropy"].value


@pytest.mark.parametrize("kind", ["dataset", "iterator", "mappings"])
def test_every_kind_of_loader_may_lack_labels(kind: str) -> None:
    batches = images_alone(GONE)
    loaders: dict[str, Any] = {
        "dataset": Pictures(batches),
        "iterator": iter(batches),
        "mappings": [{"pixel_values": batch} for batch in batches],
    }
    found = audit(
        toy("cnn").model, forget=loaders[kind], test=unseen(), device="cpu", metrics=CHECKS
    )
    assert found.samples["forget"] == 60
    assert found["accuracy"].verdict == "not run"


def test_a_test_set_without_labels_is_left_out() -> None:
    found = audit(
        toy("cnn").model, forget=toy("cnn").forget_loader(), test=images_alone(), classes=[GONE],
        device="cpu", metrics=CHECKS,
    )  # fmt: skip
    assert found.samples == {"forget": 60}
    assert [s for s in found.missing if s.startswith("no labels in the test set")]
    with pytest.raises(DataError, match="expected labels"):
        audit(toy("cnn").model, test=images_alone(), classes=[GONE], device="cpu")


def test_samples_to_keep_may_lack_labels() -> None:
    found = audit(
        toy("cnn").model, forget=toy("cnn").forget_loader(), retain=images_alone(0), test=unseen(),
        classes=[GONE], device="cpu", metrics=CHECKS,
    )  # fmt: skip
    assert found.samples["retain"] == 60
    assert [s for s in found.missing if s.startswith("no labels of training samples to keep")]
    assert found["us"].value is not None


def test_a_single_class_is_said_to_have_nothing_beside_it() -> None:
    images, labels = toy("cnn").test.tensors
    same = DataLoader(TensorDataset(images[labels == GONE], labels[labels == GONE]))
    found = audit(
        toy("cnn").model, forget=toy("cnn").forget_loader(), test=same, classes=[GONE],
        metrics=CHECKS, device="cpu",
    )  # fmt: skip
    assert [s for s in found.missing if s.startswith("samples of a single class")]
    assert [s for s in found.missing if s.startswith("no test samples of other classes")]
    assert found.samples == {"forget": 60, "test_forget": 60}


def test_instances_are_compared_with_test_samples_of_their_classes() -> None:
    found = audit(
        toy("cnn").model, forget=toy("cnn").loader(), test=unseen(), device="cpu",
        goal=Instances([0, 1, 4]), metrics=[Answers()],
    )  # fmt: skip
    assert found.forget_classes == (0, 1)
    assert found.samples == {"forget": 3, "retain": 237, "test_forget": 120, "test_retain": 120}
    assert found["answers"].details["index"].tolist() == [0, 1, 2]  # type: ignore[attr-defined]


def test_a_loader_of_one_whole_class_without_classes_is_pointed_out() -> None:
    found = audit(
        toy("cnn").model, forget=toy("cnn").forget_loader(),
        retain=loader_of(lambda labels: labels != GONE), device="cpu", metrics=[Answers()],
    )  # fmt: skip
    assert any("pass classes=[...]" in note for note in found.notes)


@pytest.mark.slow
def test_nothing_is_changed_by_an_audit() -> None:
    some, before, other = toy("cnn"), toy("cnn").model, retrained(1)
    other.requires_grad_(requires_grad=False)
    before.eval()
    models = (some.model, before, other)
    prints = [inputs.prints_of(model) for model in models]
    flags = [[module.training for module in model.modules()] for model in models]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = audit(
        some.model, forget=some.loader(), test=unseen(), classes=[GONE], original=before,
        reference=other, device="cpu", metrics=[Answers(), "linear_probe"],
    )  # fmt: skip
    assert torch.equal(torch.rand(3), expected)
    assert [inputs.prints_of(model) for model in models] == prints
    assert [[module.training for module in model.modules()] for model in models] == flags
    assert not any(p.requires_grad for p in other.parameters())
    assert all(p.requires_grad for p in some.model.parameters())
    assert any("one retrained model" in note for note in found.notes)
    assert UNCHANGED in found.verdict


def test_the_same_seed_gives_the_same_numbers_whatever_the_batches_and_the_neighbours() -> None:
    some = toy("cnn")

    def numbers(size: int, seed: int = 0, *others: Metric) -> dict[str, object]:
        found = audit(
            some.model, forget=some.loader(size), classes=[GONE], seed=seed, device="cpu",
            metrics=[*others, Answers()],
        )  # fmt: skip
        return {**found["answers"].details, **found["answers"].controls}

    first = numbers(64)
    assert str(numbers(64, 0, Infinite())) == str(first)
    assert numbers(64, 1)["drawn"] != first["drawn"]
    for size in (1, 7):
        other = numbers(size)
        assert other["losses"] == pytest.approx(first["losses"], abs=1e-6)
        assert other["untrained"] == first["untrained"]


class Augmented(Dataset[tuple[Tensor, int]]):
    """Random images: two reads never agree."""

    def __init__(self) -> None:
        self.targets = [index % 4 for index in range(16)]

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 8, 8), index % 4


def test_every_model_sees_the_same_tensors_even_of_a_loader_that_augments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Peeking(Metric):
        card: ClassVar[MetricCard] = card("peeking")

        def measure(self, evidence: Evidence) -> Finding:
            pair = [evidence.of(role, "retain").logits for role in ("unlearned", "original")]
            seen.extend(pair)
            return self.finding(0.0)

    data = DataLoader(Augmented(), batch_size=4)
    model = toy("cnn").model
    audit(model, forget=data, classes=[GONE], original=model, device="cpu", metrics=[Peeking()])
    assert torch.equal(seen[0], seen[1])
    monkeypatch.setattr(inputs, "MEMORY", 0)
    found = audit(
        model, forget=toy("cnn").loader(), classes=[GONE], device="cpu", metrics=[Answers()]
    )
    assert any("read anew" in note for note in found.notes)
    assert found["answers"].value == 1.0


def test_of_more_samples_to_keep_than_fit_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[torch.Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Rows(Metric):
        card: ClassVar[MetricCard] = card("rows")

        def measure(self, evidence: Evidence) -> Finding:
            looked_at.append(evidence.samples("retain").positions)
            return self.finding(0.0)

    some = toy("cnn")
    view = adapt(some.model, some.train.tensors[0][:2])
    each = 4 * 2 * (4 + view.feature_dim)  # two models, four classes
    monkeypatch.setattr(inputs, "OUTPUTS", 25 * each + 1)
    for seed in (0, 0, 1):
        found = audit(
            some.model, forget=some.loader(), test=unseen(), classes=[GONE],
            device="cpu", metrics=[Rows()], seed=seed,
        )  # fmt: skip
    whole = int((some.train.tensors[1] != GONE).sum())
    assert found.samples["retain"] == 25
    assert found.samples["forget"] == len(some.train) - whole
    assert any(f"retain: 25 of {whole} samples are looked at" in note for note in found.notes)
    assert torch.equal(looked_at[0], looked_at[1])
    assert not torch.equal(looked_at[0], looked_at[2])


def test_the_fingerprint_of_a_set_is_that_of_its_content() -> None:
    images, labels = toy("cnn").train.tensors
    from forgetkit.data.set_digest import set_digest
    from forgetkit.data.sets import StoredSet

    whole = set_digest(StoredSet(images, labels, batch_size=64))
    assert set_digest(StoredSet(images, labels, batch_size=7)) == whole
    other = images.clone()
    other[3, 0, 0, 0] += 1
    assert set_digest(StoredSet(other, labels)) != whole
    assert set_digest(StoredSet(images, labels.roll(1))) != whole


def test_a_result_is_audited_with_the_original_from_its_patch() -> None:
    some = toy("cnn")
    result = forget(some.model).classes([GONE]).using("lau").on("cpu").run(some.loader())
    prints = inputs.prints_of(some.model)
    found = result.audit(some.loader(), test=unseen(), metrics=[Answers()], device="cpu")
    assert inputs.prints_of(some.model) == prints
    assert found.changed == list(result.patch.names)
    assert found["answers"].controls["original"] == 1.0
    assert found["answers"].value == 0.0
    assert found.fingerprints["original"] == digest(inputs.prints_of(toy("cnn").model))
    assert result.audit(test=unseen(), metrics=["us"], device="cpu")["us"].value is not None
    result.undo()
    with pytest.raises(PatchMismatch):
        result.audit(some.loader(), metrics=[Answers()], device="cpu")


def test_the_function_is_found_whatever_was_imported_before() -> None:
    import forgetkit.auditing.evidence
    import forgetkit.auditing.run as home

    assert forgetkit.audit is home.audit
    assert forgetkit.audit is audit


def ask(**changes: object) -> Audit:
    words: dict[str, object] = {
        "forget": toy("cnn").loader(), "classes": [GONE], "device": "cpu", "metrics": [Answers()],
    }  # fmt: skip
    return audit(toy("cnn").model, **(words | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"level": "deep"}, BadHyperparameter, "expected one of quick, standard, full"),
        ({"seed": -1}, BadHyperparameter, "expected an integer from 0"),
        ({"goal": Instances([1])}, BadTarget, "expected one of the two"),
        ({"metrics": []}, BadHyperparameter, "expected names of metrics"),
        ({"metrics": [Answers(), Answers()]}, BadHyperparameter, "each once"),
        ({"forget": None}, DataError, "expected the samples to forget"),
        ({"forget": None, "classes": None}, DataError, "expected the samples to forget"),
        ({"classes": [9]}, BadTarget, "classes from 0 to 3"),
        ({"classes": [0, 1, 2, 3]}, BadTarget, "at least one class to be kept"),
        ({"original": 3}, ModelError, "expected a torch.nn.Module"),
        ({"original": TOYS["cnn"](4).state_dict()}, ModelError, "found weights by name; load"),
        ({"reference": TOYS["cnn"](4).state_dict()}, ModelError, "found weights by name; load"),
        ({"head": "nothing"}, CannotSplitModel, "head='nothing' should be the dotted path"),
        ({"reference": TOYS["cnn"](5)}, ModelError, "expected a model with 4 outputs"),
        ({"original": TOYS["cnn"](5)}, ModelError, "expected a model with 4 outputs"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(**changes)


def test_a_reference_is_a_model_of_its_own() -> None:
    first, second = retrained(1), retrained(2)
    found = ask(original=second, reference=[toy("cnn").model, first])
    assert found.models["retrained"] == 1
    assert found.fingerprints["retrained"] == [digest(inputs.prints_of(first))]
    assert any("reference 1 is the model under audit" in note for note in found.notes)
    alone = ask(reference=toy("cnn").model)
    assert "retrained" not in alone.models
    assert "retrained" not in alone.fingerprints
    assert any(sentence.startswith("no model retrained") for sentence in alone.missing)
    with pytest.raises(ModelError, match="number 2 is bit for bit the original, which was trained"):
        ask(original=second, reference=[first, copy.deepcopy(second)])
    with pytest.raises(ModelError, match="number 2 is bit for bit a reference that was given"):
        ask(reference=[first, copy.deepcopy(first)])


def test_the_named_head_may_be_missing_in_another_model() -> None:
    assert ask(original=toy("vit").model, head="fc").partial is False


def test_an_original_of_another_kind_says_nothing_about_the_change() -> None:
    found = ask(original=toy("vit").model)
    assert found.changed is None
    assert found.head_only is None
    assert any("other tensors" in note for note in found.notes)


def test_a_change_beyond_the_head_is_no_head_edit() -> None:
    other = toy("cnn").model
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    found = ask(original=other)
    assert found.head_only is False
    assert found.changed == ["body.0.weight"]
    assert HEAD_ONLY not in found.verdict


class Unsplittable(nn.Module):
    """No weights between features and logits that could be a head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :4] * self.scale


def test_a_model_without_a_head_is_audited_by_its_outputs() -> None:
    loader = toy("cnn").loader()
    found = audit(
        Unsplittable(), forget=loader, test=unseen(), classes=[GONE], device="cpu",
        metrics=["accuracy", "linear_probe"],
    )  # fmt: skip
    assert any(
        sentence.startswith("features: the model cannot be split") for sentence in found.missing
    )
    assert "cannot be split" in found["linear_probe"].note
    assert OUTPUT_ONLY in found.verdict


def test_a_file_that_is_no_record_is_refused(tmp_path: Path, hidden: Audit) -> None:
    file = tmp_path / "other.json"
    with pytest.raises(FileNotFoundError, match="audit's record"):
        Audit.load(file)
    file.write_text("{}")
    with pytest.raises(DataError, match="expected an audit's record of schema 1"):
        Audit.load(file)
    file.write_text("no json")
    with pytest.raises(DataError, match="expected JSON"):
        Audit.load(file)
    record = hidden.to_json()
    del record["findings"]
    with pytest.raises(DataError, match="expected every entry"):
        Audit.from_json(record)


BEHIND, ACCURACY, LOSSES, WEIGHTS, ROUNDED = (
    card("probe", "audit"), card("accuracy", "accuracy"), card("mia", "attack"),
    card("moved", "representation", reads="weights"), card("rounded", "audit", reads="disturbed"),
)  # fmt: skip
CARDS = {one.slug: one for one in (BEHIND, ACCURACY, LOSSES, WEIGHTS, ROUNDED)}
KNOWN = Circumstances("class 3", has_reference=True)


def said(known: Circumstances = KNOWN, **verdicts: Verdict) -> str:
    findings = [Finding(slug, 0.5, verdict=judged) for slug, judged in verdicts.items()]
    text = " ".join(verdict(findings, CARDS, known))
    assert not any(word in text.lower() for word in BANNED)
    return text


def test_the_words_of_the_verdict_follow_from_the_verdicts() -> None:
    clean = said(probe="as retrain", accuracy="as retrain")
    assert clean.startswith("As far as tested (Probe, Accuracy), the model behaves as one that was")
    assert OUTPUT_ONLY not in clean
    assert said(probe="residual", accuracy="as retrain").startswith("Hidden, not gone")
    both = said(probe="residual", accuracy="as retrain", mia="residual")
    assert "still found by Probe. Traces are left as well by Mia." in both
    assert "What that means (Probe): probe is bad." in both
    open_ = said(probe="residual", accuracy="residual")
    assert open_.startswith("Traces of class 3 are left, found by Probe, Accuracy.")
    assert "Over-forgotten by Mia" in said(mia="over-forgotten", accuracy="as retrain")
    assert "As after retraining by Accuracy" in said(mia="over-forgotten", accuracy="as retrain")
    assert OUTPUT_ONLY in said(accuracy="as retrain")
    assert OUTPUT_ONLY in said(accuracy="as retrain", moved="no verdict")
    assert OUTPUT_ONLY in said(accuracy="as retrain", probe="not run")
    assert OUTPUT_ONLY in said(accuracy="as retrain", rounded="as retrain")
    assert said(accuracy="as retrain", rounded="residual").startswith("Hidden, not gone")
    assert "Not decidable: Mia." in said(mia="not decidable")
    assert "Not tested: Probe." in said(accuracy="as retrain", probe="not run")
    assert said(probe="not run").startswith("Nothing was tested")
    assert said(accuracy="no verdict").startswith("No check that ran could decide.")
    alone = said(replace(KNOWN, has_reference=False), accuracy="no verdict")
    assert "most need a model retrained" in alone


def test_no_all_clear_rests_on_a_check_that_the_original_passes_or_never_met() -> None:
    blind = said(replace(KNOWN, blind=("mia",)), mia="not decidable", probe="not decidable")
    assert blind.startswith("No check that ran could decide.")
    assert "Not decidable, because the original passes too: Mia. Not decidable: Probe." in blind
    untried = said(replace(KNOWN, untried=("mia", "probe")), mia="as retrain", probe="as retrain")
    assert "on class 3. No check was tried on the original: nothing shows" in untried
    some = said(replace(KNOWN, untried=("mia",)), mia="as retrain", probe="as retrain")
    assert "on class 3. Not tried on the original: Mia." in some
    same = said(replace(KNOWN, unchanged=True), mia="as retrain", accuracy="as retrain")
    assert "As far as tested" not in same
    assert same.startswith("No difference from a retrained model is seen by Mia, Accuracy.")
    assert UNCHANGED in same


@pytest.mark.parametrize(
    ("accuracy", "hidden"),
    [
        (Finding("accuracy", 1.0, verdict="not decidable", interval=(0.9, 1.0)), False),
        (Finding("accuracy", 0.0, verdict="not decidable", interval=(0.0, 0.4)), True),
        (Finding("accuracy", 0.0, verdict="not decidable", interval=(0.0, 0.6)), False),
        (Finding("accuracy", 0.0, verdict="not decidable"), False),
        (Finding("accuracy", None, verdict="not run"), False),
        (Finding("accuracy", 0.9, verdict="residual", interval=(0.0, 0.4)), False),
        (Finding("accuracy", 0.0, verdict="over-forgotten", interval=(0.0, 0.4)), True),
    ],
)
def test_only_a_class_that_is_known_not_to_be_answered_is_called_hidden(
    accuracy: Finding, hidden: bool
) -> None:
    """With the probe alone, a silent class and one that was never asked about look the same."""
    found = [replace(accuracy, controls={"original": 1.0}), Finding("probe", 1, verdict="residual")]
    first = verdict(found, CARDS, replace(KNOWN, head_only=True))[0]
    assert first.startswith("Hidden, not gone" if hidden else "Traces of class 3 are left")


def test_circumstances_are_said() -> None:
    assert HEAD_ONLY in said(replace(KNOWN, head_only=True), probe="residual")
    unknown = said(replace(KNOWN, head_only=True), probe="residual", accuracy="not decidable")
    assert unknown.startswith("Traces of class 3 are left")
    assert said(replace(KNOWN, head_masked=True), probe="residual").startswith("Hidden")
    assert MASKED in said(replace(KNOWN, head_masked=True), accuracy="no verdict")
    same = said(replace(KNOWN, head_only=True, unchanged=True), probe="residual")
    assert UNCHANGED in same
    assert HEAD_ONLY not in same
    assert same.startswith("Traces of class 3")
    assert "interrupted" in said(replace(KNOWN, partial=True), accuracy="as retrain")
    beyond = said(replace(KNOWN, beyond=("Relearning",)), accuracy="as retrain")
    assert "Not tested at level quick: Relearning." in beyond


def test_every_check_of_the_level_and_no_other_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Long(Answers):
        card: ClassVar[MetricCard] = card("long", level="full")

    monkeypatch.setattr("forgetkit.auditing.run.all_metrics", lambda: [Answers, Long])
    quick = ask(metrics=None)
    assert [finding.slug for finding in quick.findings] == ["answers"]
    assert quick.beyond == ["long"]
    full = ask(metrics=None, level="full")
    assert [finding.slug for finding in full.findings] == ["answers", "long"]
    assert full.beyond == []


def test_progress_is_told_with_an_estimate_before_it_starts() -> None:
    lines: list[str] = []
    ask(say=lines.append, metrics=[Answers(), Infinite()])
    assert lines[0].startswith("2 checks (quick) on 2 models and 240 samples: about ")
    assert lines[1:] == ["1/2 Answers", "2/2 Infinite"]


def test_the_estimate_says_that_heads_of_many_classes_are_not_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forgetkit.auditing.estimate.MANY_CLASSES", 3)
    lines: list[str] = []
    ask(say=lines.append, metrics=["prototype"])
    assert lines[0].endswith(", and up to minutes more where new heads are fitted to 4 classes")
    ask(say=lines.append, metrics=["accuracy"])
    assert lines[2].startswith("1 checks")
    assert "heads" not in lines[2]


def streamed() -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = toy("cnn").train.tensors
    yield from zip(images.split(50), labels.split(50), strict=True)


def test_an_iterator_is_read_once() -> None:
    found = ask(forget=streamed())
    assert found.samples["forget"] == 60
    assert found["answers"].value == 1.0


def test_features_that_lose_their_batch_of_one_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Squeezing(nn.Module):
        """Of a single sample it makes features without a batch dimension."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(1, 16, 8)
            self.fc = nn.Linear(16, 4)

        def forward(self, images: Tensor) -> Tensor:
            """Return logits (batch, 4)."""
            logits: Tensor = self.fc(self.body(images).squeeze())
            return logits

    monkeypatch.setattr(inputs, "OUTPUTS", 25 * 4 * 2 * (4 + 16))  # two models
    found = audit(
        Squeezing(), forget=toy("cnn").loader(), classes=[GONE], device="cpu", metrics=["accuracy"]
    )
    assert found.samples["retain"] == 25
