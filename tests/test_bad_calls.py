"""Calls of the public interface that cannot be served get a sentence and change nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import (
    Guard,
    Patch,
    Statistics,
    adapt,
    audit,
    forget,
    load_model,
    search,
    train_references,
)
from forgetkit.comparing import compare
from forgetkit.engine.run import Run
from forgetkit.errors import (
    BadHyperparameter,
    BadTarget,
    CannotSplitModel,
    DataError,
    ForgetkitError,
    MissingFile,
    ModelError,
    UnknownMethod,
    UnlearningFailed,
)
from forgetkit.method import Method, Pair, all_cards, build, find, register
from forgetkit.recipe import FullNetwork
from forgetkit.report import load_record, write_report
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, photograph, weights
from forgetkit.types import Terms


@pytest.mark.parametrize("guard", [0.02, False, 1])
def test_a_guard_is_a_guard(guard: object) -> None:
    some = toy("cnn")
    before = weights(some.model)
    with pytest.raises(BadHyperparameter, match=r"Guard\(budget=0.02\)"):
        forget(some.model).classes([3]).using("lau").run(some.loader(), guard=guard)  # type: ignore[arg-type]
    assert changed(weights(some.model), before) == []


def test_a_run_that_nothing_watches_says_so() -> None:
    for loader, watched in ((toy("cnn").forget_loader(), False), (toy("cnn").loader(), True)):
        result = forget(toy("cnn").model).classes([3]).using("lau").on("cpu").run(loader)
        assert any("not watched" in note for note in result.notes) is not watched


def test_files_that_are_not_there_are_forgetkits_errors(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for read in (Statistics.load, Patch.load, load_record):
        with pytest.raises(MissingFile, match="missing"):
            read(missing)
    assert issubclass(MissingFile, ForgetkitError)
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("pgu", statistics=str(missing))
    with pytest.raises(MissingFile, match=r"Statistics\.collect"):
        request.run(some.loader(), guard=None)


def test_single_values_where_a_list_is_due() -> None:
    some = toy("cnn")
    with pytest.raises(BadHyperparameter, match=r"metrics=\['accuracy'\]"):
        audit(some.model, forget=some.loader(), classes=[3], metrics="accuracy")
    with pytest.raises(BadTarget, match=r"targets=\[3, 5\]"):
        compare(some.model, some.loader(), 3, ["lau"])  # type: ignore[arg-type]


def test_statistics_take_away_what_the_run_forgot_and_nothing_else() -> None:
    some = toy("cnn")
    collected = Statistics.collect(some.model, some.loader())
    request = forget(some.model).classes([3]).using("neggrad", epochs=1).on("cpu")
    result = request.run(some.loader(), guard=None)
    images, labels = some.train.tensors
    few = DataLoader(TensorDataset(images[labels == 3][:7], labels[labels == 3][:7]), batch_size=7)
    with pytest.raises(DataError, match="forgot 60 samples, found 7"):
        collected.without(result, few)
    assert collected.without(result, some.loader()).samples == 180


def test_images_that_the_model_cannot_take() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    wrong = {
        "scaled and": (images * 255).byte(),
        "channels": torch.cat([images, images], dim=1),
    }
    for cure, given in wrong.items():
        loader = DataLoader(TensorDataset(given, labels), batch_size=60)
        with pytest.raises(ForgetkitError, match=cure):
            forget(some.model).classes([3]).using("finetune").on("cpu").run(loader)
    with pytest.raises(ModelError, match="pass the model itself"):
        Statistics.collect("resnet18", some.loader())  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["finetune", "lau"])
def test_weights_made_in_inference_mode_are_refused_before_anything_is_touched(method: str) -> None:
    some = toy("cnn")
    with torch.inference_mode():
        model = copy.deepcopy(some.model)
    seen, before = photograph(model), weights(model)
    request = forget(model).classes([3]).using(method).on("cpu")
    with pytest.raises(
        ModelError, match=r"body.0.weight made inside torch\.inference_mode.*load the model out"
    ):
        request.run(some.loader(), guard=None)
    assert photograph(model) == seen
    assert changed(before, weights(model)) == []


def test_a_head_behind_frozen_layers_made_in_inference_mode_is_edited() -> None:
    some = toy("cnn")
    body = some.model.get_submodule("body").requires_grad_(requires_grad=False)
    with torch.inference_mode():
        some.model.register_module("body", copy.deepcopy(body))
    forget(some.model).classes([3]).using("lau").on("cpu").run(some.loader(), guard=None)
    assert some.accuracy(some.test, [3]) < 0.1


def test_what_is_no_model_is_refused_everywhere() -> None:
    some = toy("cnn")
    with pytest.raises(ModelError, match="found str"):
        compare("package:build", some.loader(), [3], ["lau"])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="found str"):
        search("package:build", "lau", [3], some.loader(), validate=DataLoader(some.test))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="found str"):
        train_references("package:build", some.loader(), classes=[3])  # type: ignore[arg-type]
    with pytest.raises(BadTarget, match=r"expected an object of forgetkit\.goal.*classes=\[3\]"):
        audit(some.model, forget=some.loader(), goal="classes")  # type: ignore[arg-type]


def test_a_model_and_images_that_do_not_go_together_are_one_sentence() -> None:
    some = toy("cnn")
    with pytest.raises(DataError, match=r"adapt\(\): expected a model and images that go together"):
        adapt(some.model, torch.randn(2, 3, 8, 8))
    with pytest.raises(DataError, match="does not take one of the entries"):
        adapt(some.model, {"pixel_values": torch.randn(2, 1, 8, 8)})


def test_a_model_without_classifier_is_refused_by_full_network_methods() -> None:
    model = timm.create_model("resnet10t", num_classes=0)
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    before = weights(model)
    with pytest.raises(CannotSplitModel, match="should be a classifier"):
        forget(model).classes([3]).using("neggrad").on("cpu").run(batches)
    assert changed(before, weights(model)) == []


def test_a_page_that_is_none_is_refused_before_the_audit(tmp_path: Path) -> None:
    some, said = toy("cnn"), list[str]()
    with pytest.raises(DataError, match=r"ends in \.html"):
        audit(
            some.model, forget=some.loader(), classes=[3], metrics=["accuracy"], device="cpu",
            report=tmp_path / "page.txt", say=said.append,
        )  # fmt: skip
    assert said == []


def test_a_report_takes_what_an_audit_returned(tmp_path: Path) -> None:
    some = toy("cnn")
    found = audit(some.model, forget=some.loader(), classes=[3], metrics=["accuracy"], device="cpu")
    assert write_report(found, tmp_path).is_file()
    assert found.save(tmp_path / "new" / "audit.json").is_file()
    with pytest.raises(DataError, match="expected what an audit returned"):
        write_report("audit.json", tmp_path)  # type: ignore[arg-type]


def test_methods_that_cannot_be_used_are_not_registered() -> None:
    card = dataclasses.replace(find("finetune").card, slug="of_a_test")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bare(FullNetwork):
        weight: float = 0.5

        def loss(self, batch: Pair, run: Run) -> Terms:
            return {}

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Untrained(Method):
        def loss(self, batch: Pair, run: Run) -> Terms:
            return {}

    for method, says in ((Bare, "found weight"), (Untrained, "expected .* a Trained one")):
        method.card = card
        with pytest.raises(BadHyperparameter, match=says):
            register(method)
    assert "of_a_test" not in {known.slug for known in all_cards()}


def test_unpickling_is_not_advised(tmp_path: Path) -> None:
    file = tmp_path / "whole.pt"
    torch.save(toy("cnn").model, file)
    with pytest.raises(ModelError) as caught:
        load_model("torchvision/resnet18", state_dict=file)
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("single", [True, False])
def test_labels_of_one_class_each_as_vectors_get_their_own_advice(single: bool) -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    vectors = torch.nn.functional.one_hot(labels, 4)
    vectors[0] = 1 if not single else vectors[0]
    loader = DataLoader(TensorDataset(images, vectors), batch_size=40)
    with pytest.raises(DataError, match="multi-label") as caught:
        forget(some.model).instances([0, 1]).using("suli").on("cpu").run(loader)
    assert ("labels.argmax(dim=1)" in str(caught.value)) == single


def test_numpy_numbers_are_numbers() -> None:
    request = forget(toy("cnn").model).seed(np.int64(3)).on(accumulate=np.int32(2))
    assert (request.random_seed, request.accumulate) == (3, 2)
    assert {type(request.random_seed), type(request.accumulate)} == {int}
    for no_number in (np.float64(3.0), np.bool_(True)):
        with pytest.raises(BadHyperparameter, match="expected an integer"):
            forget(toy("cnn").model).seed(no_number)  # type: ignore[arg-type]


def test_a_broken_edit_is_told_to_be_weaker_and_a_broken_model_to_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Method, run: Run) -> None:
        next(iter(run.parameters.values())).fill_(torch.nan)

    monkeypatch.setattr(find("linear_filtration"), "edit", broken)
    some = toy("vit")
    before = weights(some.model)
    request = forget(some.model).classes([3]).using("linear_filtration")
    with pytest.raises(UnlearningFailed, match=r"logits, found NaN .* make it weaker: a lower lr"):
        request.run(some.loader(), guard=None)
    assert not changed(before, weights(some.model))
    with torch.no_grad():
        next(some.model.parameters()).fill_(torch.nan)
    with pytest.raises(UnlearningFailed, match=r"NaN .* check the images of that batch"):
        request.run(some.loader(), guard=None)


def audited(**options: Any) -> object:  # noqa: ANN401
    some = toy("cnn")
    return audit(some.model, forget=some.forget_loader(), **options)


def compared(**options: Any) -> object:  # noqa: ANN401
    some = toy("cnn")
    return compare(some.model, some.loader(), [3], [build("lau", {})], **options)


WRONG: dict[str, Callable[[], object]] = {
    "reference=": lambda: audited(reference=3),
    "report=3": lambda: audited(report=3),
    "seeds=1.5": lambda: compared(seeds=1.5),
    r"seeds=\[True\]": lambda: compared(seeds=[True]),
    "out=3": lambda: compared(out=3),
    "minutes='x'": lambda: train_references(
        toy("cnn").model, toy("cnn").loader(), classes=[3], minutes=cast("float", "x")
    ),
    "path=3": lambda: Patch.load(cast("str", 3)),
    "path=4": lambda: Statistics.load(cast("str", 4)),
    "budget=True": lambda: Guard(budget=True),
    "most=True": lambda: Guard(most=True),
    r"register\(3\)": lambda: register(cast("type[Method]", 3)),
}


@pytest.mark.parametrize("named", WRONG)
def test_a_value_of_another_type_is_named(named: str) -> None:
    with pytest.raises(ForgetkitError, match=named + ".*expected"):
        WRONG[named]()


def test_auto_is_for_runs() -> None:
    some = toy("cnn")
    with pytest.raises(UnknownMethod, match="chooses when one request is run"):
        compare(some.model, some.loader(), [3], ["auto"])


def test_steps_that_are_taken_twice_keep_what_the_first_has_set() -> None:
    request = forget(toy("cnn").model).on("cpu", accumulate=2).on(mixed_precision="bf16")
    assert (request.device, request.mixed_precision, request.accumulate) == ("cpu", "bf16", 2)
    assert request.on("meta", accumulate=1).device == "meta"
    assert request.on("meta", accumulate=1).accumulate == 1
    request = request.head("fc").head(output="logits")
    assert (request.head_name, request.output) == ("fc", "logits")
    assert request.head("body").head_name == "body"
