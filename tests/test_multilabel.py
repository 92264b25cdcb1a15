"""Data whose samples carry several yes-or-no labels, from the loader to the result."""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import Request, forget
from forgetkit.data.split import split
from forgetkit.engine.measuring import measure
from forgetkit.engine.place import Place
from forgetkit.errors import DataError
from forgetkit.goal import Instances
from forgetkit.losses import accuracy, bounded_ascent, label_hits, per_sample_loss, predictions
from forgetkit.testing.toys import ToyCNN
from forgetkit.testing.trace import changed, weights

LABELS = 3
FORGOTTEN = range(40)


def attributes(count: int, seed: int) -> TensorDataset:
    """Return noisy sums of three patterns, (count, 1, 8, 8), and which of them are in each."""
    patterns = torch.randn(LABELS, 64, generator=Generator().manual_seed(77))
    draws = Generator().manual_seed(seed)
    present = (torch.rand(count, LABELS, generator=draws) < 0.5).float()
    noise = torch.randn(count, 64, generator=draws)
    return TensorDataset((present @ patterns + 0.7 * noise).reshape(-1, 1, 8, 8), present)


TRAIN, TEST = attributes(240, 0), attributes(120, 1)


@functools.cache
def _trained() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyCNN(LABELS)
        images, labels = TRAIN.tensors
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(20):
            for rows in torch.randperm(len(labels)).split(32):
                loss = functional.binary_cross_entropy_with_logits(
                    model(images[rows]), labels[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def trained() -> nn.Module:
    model = copy.deepcopy(_trained())
    for parameter in model.parameters():
        parameter.grad = None
    return model


def request(model: nn.Module, method: str, **settings: object) -> Request:
    return forget(model).instances(FORGOTTEN).using(method, **settings).on("cpu")


def loader(data: TensorDataset = TRAIN) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size=32)


RUNS: dict[str, dict[str, object]] = {
    "gli": {"batch_size": 16, "lr": 0.05, "weight_start": 1.0, "weight_end": 1.0},
    "finetune": {"epochs": 1},
    "neggrad": {"epochs": 2, "lr": 0.01, "batch_size": 16},
    "retrain": {"epochs": 2, "lr": 0.003, "optimizer": "adamw", "batch_size": 32},
}


@pytest.mark.parametrize("method", RUNS)
def test_whole_run(method: str) -> None:
    model = trained()
    before = weights(model)
    asked = request(model, method, **RUNS[method]).validate(loader(TEST))
    result = asked.run(loader(), guard=None)
    assert changed(before, weights(model))
    images, labels = TRAIN.tensors
    for name, rows, data in (
        ("forget", slice(0, 40), (images, labels)),
        ("validation_retain", slice(None), TEST.tensors),
    ):
        with torch.no_grad():
            present = model.eval()(data[0][rows]) > 0
        by_label = (present == (data[1][rows] > 0)).double().mean(dim=0)
        found = result.after[name]
        assert list(found.by_label) == [0, 1, 2]
        assert list(found.by_label.values()) == pytest.approx(by_label.tolist(), abs=1e-9)
        assert found.accuracy == pytest.approx(float(by_label.mean()), abs=1e-6)
        assert found.by_class == {}
    assert result.before["validation_retain"].accuracy > 0.9
    record = json.loads(json.dumps(result.to_json()))
    assert set(record["after"]["forget"]["by_label"]) == {"0", "1", "2"}
    assert "by label" in result.card()
    assert "forget set" in repr(result)


@pytest.mark.parametrize("method", ["gli", "finetune"])
def test_guard_watches_and_keeps(method: str) -> None:
    model = trained()
    result = request(model, method, **RUNS[method]).run(loader())
    assert len(result.after["retain"].by_label) == LABELS
    assert result.after["retain"].accuracy >= result.before["retain"].accuracy - 0.1


def test_guard_undoes_a_broken_model() -> None:
    model = trained()
    before = weights(model)
    result = request(model, "neggrad", lr=1.0, epochs=20, max_norm=None).run(loader())
    assert result.rolled_back
    assert changed(before, weights(model)) == []


def test_gli_scores_with_label_accuracy() -> None:
    result = request(trained(), "gli", **RUNS["gli"]).validate(loader(TEST)).run(loader())
    assert "best final score on validation data" in result.notes[-1]
    assert 0.0 < result.history[-1]["final_score"] <= 1.0


def test_finetune_step_is_binary_cross_entropy() -> None:
    model, twin = trained(), trained()
    for module in [*model.modules(), *twin.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    settings = {"epochs": 1, "batch_size": 65536, "momentum": 0.0, "lr": 0.1, "bn": "frozen"}
    request(model, "finetune", **settings).run(loader(), guard=None)
    images, labels = (tensor[40:] for tensor in TRAIN.tensors)
    p = twin.eval()(images).sigmoid()
    loss = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    for ours, theirs, gradient in zip(
        model.parameters(), twin.parameters(), gradients, strict=True
    ):
        assert torch.allclose(ours, theirs - 0.1 * gradient, atol=1e-5)


def test_neggrad_stops_at_the_accuracy_on_validation_data() -> None:
    model = trained()
    settings = {"lr": 0.02, "epochs": 100, "batch_size": 16, "check_every": 1}
    asked = request(model, "neggrad", **settings).validate(loader(TEST))
    result = asked.run(loader(), guard=None)
    target = result.before["validation_retain"].accuracy
    assert f"its target of {100 * target:.2f} %" in result.stopped_because
    assert result.after["forget"].accuracy <= target < result.before["forget"].accuracy


@pytest.mark.parametrize("method", ["random_label", "boundary_expand", "initial_label"])
def test_methods_that_need_class_indices_refuse(method: str) -> None:
    model = trained()
    before = weights(model)
    wanted = forget(model).classes([1]) if method == "boundary_expand" else None
    wanted = wanted or forget(model).instances(FORGOTTEN)
    with pytest.raises(DataError, match=r"expected one class index .* multi-label .* gli"):
        wanted.using(method).on("cpu").run(loader())
    assert changed(before, weights(model)) == []


def test_a_class_is_every_sample_that_carries_the_label() -> None:
    model = trained()
    asked = forget(model).classes([1]).using("finetune", epochs=1).on("cpu").validate(loader(TEST))
    result = asked.run(loader(), guard=None)
    carriers = int(TRAIN.tensors[1][:, 1].sum())
    assert result.samples["forget"] == carriers
    assert result.samples["retain"] == 240 - carriers
    assert result.samples["validation_forget"] == int(TEST.tensors[1][:, 1].sum())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_targets_of_any_type_give_the_same_run(dtype: torch.dtype) -> None:
    images, labels = TRAIN.tensors
    outcomes = []
    for targets in (labels, labels.to(dtype)):
        model = trained()
        data = TensorDataset(images, targets)
        request(model, "gli", max_batches=2, batch_size=16).run(loader(data), guard=None)
        outcomes.append(weights(model))
    assert changed(*outcomes) == []


def test_batches_and_streams_are_read_alike() -> None:
    sets = [
        split(source, Instances(FORGOTTEN), num_classes=3, forget_classes=(), retain=kept)
        for source, kept in (
            (loader(), None),
            (list(loader()), None),
            (iter(loader()), loader(TEST)),
        )
    ]
    for found in sets:
        assert torch.equal(found.forget.labels, TRAIN.tensors[1][:40])
    assert sets[0].retain is not None
    batch = next(iter(sets[0].retain.batches(8, generator=Generator().manual_seed(3))))
    assert torch.equal(batch.labels, TRAIN.tensors[1][40:][batch.index])


@pytest.mark.parametrize("name", ["retain", "validate"])
def test_two_kinds_of_label_are_refused(name: str) -> None:
    other = DataLoader(TensorDataset(TEST.tensors[0], torch.zeros(120).long()), batch_size=32)
    asked = request(trained(), "finetune")
    asked = asked.retain(other) if name == "retain" else asked.validate(other)
    with pytest.raises(DataError, match=f"{name}: expected multi-label rows .* class indices"):
        asked.run(loader())


def test_soft_labels_are_refused() -> None:
    images, labels = TRAIN.tensors
    with pytest.raises(DataError, match=r"multi-label matrix of 0 and 1.*0\.9"):
        request(trained(), "gli").run(loader(TensorDataset(images, labels * 0.8 + 0.1)))


@pytest.mark.parametrize("method", ["gli", "neggrad"])
def test_one_output_has_one_label_whatever_its_shape(method: str) -> None:
    images, labels = TRAIN.tensors
    start = ToyCNN(1)
    outcomes = []
    for shape in ((240,), (240, 1)):
        model = copy.deepcopy(start)
        data = TensorDataset(images, labels[:, 0].long().reshape(shape))
        settings = {"lr": 0.01, "epochs": 1, "batch_size": 16}
        result = request(model, method, **settings).run(loader(data), guard=None)
        assert list(result.after["forget"].by_label) == [0]
        outcomes.append(weights(model))
    assert changed(*outcomes) == []


def test_measures_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.1, -0.2]])
    labels = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert label_hits(logits, labels).tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    assert accuracy(logits, labels).tolist() == pytest.approx([2 / 3, 2 / 3])
    p = logits.sigmoid()
    by_hand = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean(dim=1)
    assert torch.allclose(per_sample_loss(logits, labels), by_hand, atol=1e-6)
    classes = torch.tensor([0, 2])
    assert torch.allclose(
        per_sample_loss(logits, classes), -logits.log_softmax(dim=1)[[0, 1], classes], atol=1e-6
    )
    one = per_sample_loss(logits[:, :1], labels[:, :1])
    two = torch.stack([torch.zeros(2), logits[:, 0]], dim=1)
    assert torch.allclose(one, per_sample_loss(two, labels[:, 0].long()), atol=1e-6)
    assert float(bounded_ascent(logits, labels)) == pytest.approx(-float(by_hand.mean()), abs=1e-6)


def test_measuring_counts_every_batch() -> None:
    samples = split(
        loader(), Instances(None), num_classes=3, forget_classes=(), need_retain=False
    ).forget
    samples.at_once = 7
    found = measure(
        samples,
        lambda batch: batch.inputs.flatten(1)[:, :3],  # type: ignore[union-attr]  # one tensor
        3,
        Place(torch.device("cpu")),
    )
    images, labels = TRAIN.tensors
    hits = ((images.flatten(1)[:, :3] > 0) == (labels > 0)).double()
    assert list(found.by_label.values()) == pytest.approx(hits.mean(dim=0).tolist())
    assert found.accuracy == pytest.approx(float(hits.mean()))
    assert found.samples == 240


def test_a_prediction_that_is_no_number_is_wrong() -> None:
    logits = torch.tensor([[torch.nan, torch.nan], [torch.nan, 1.0], [1.0, -torch.inf]])
    assert predictions(logits).tolist() == [-1, -1, 0]
    assert accuracy(logits, torch.tensor([0, 1, 0])).tolist() == [0.0, 0.0, 1.0]
    several = label_hits(torch.full((1, 2), torch.nan), torch.tensor([[0.0, 1.0]]))
    assert several.tolist() == [[0.0, 0.0]]
