"""SSD, LFSSD and ASSD on whole models: against plain loops, with files, and their notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.errors import DataError
from forgetkit.importance_reading import importance_of
from forgetkit.result import Result
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, weights

SLUGS = ["ssd", "lfssd", "assd"]
SETTINGS: dict[str, dict[str, Any]] = {
    "ssd": {"threshold": 2.0, "strength": 0.5},
    "lfssd": {"threshold": 1.2, "strength": 0.5},
    "assd": {"selection": 3.0, "strength": 0.5},
}


def run(some: Toy, slug: str, size: int = 32, **settings: Any) -> Result:  # noqa: ANN401
    chosen = {**SETTINGS[slug], **settings}
    request = forget(some.model).classes([3]).using(slug, **chosen).on("cpu").seed(0)
    return request.run(some.loader(size), guard=None)


def importance(some: Toy, rows: Tensor, slug: str, size: int) -> dict[str, Tensor]:
    """Average over parts the squared (or absolute) gradient of the mean over each part."""
    images, labels = some.train.tensors
    model = some.model.eval()
    sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    for part in rows.split(size):
        logits = model(images[part])
        entropy = nn.functional.cross_entropy(logits, labels[part])
        loss = (logits**2).sum(dim=1).mean() if slug == "lfssd" else entropy
        found = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(sums, found, strict=True):
            wide = gradient.double()
            sums[name] += wide.abs() if slug == "lfssd" else wide.square()
    return sums


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize(("form", "size"), [("sample", 1), ("batch", 20)])
def test_equals_a_plain_loop(slug: str, kind: str, form: str, size: int) -> None:
    some = toy(kind)
    labels = some.train.tensors[1]
    own, kept = (labels == 3).nonzero()[:, 0], (labels != 3).nonzero()[:, 0]
    count_own, count_all = len(own) / size, len(labels) / size
    forget_sum, kept_sum = (importance(some, rows, slug, size) for rows in (own, kept))
    one = {n: v / count_own for n, v in forget_sum.items()}
    everything = {n: (v + kept_sum[n]) / count_all for n, v in forget_sum.items()}
    ratios = torch.cat([(one[n] / everything[n]).reshape(-1) for n in one])
    ratios = ratios[~ratios.isnan()]
    threshold = SETTINGS[slug].get("threshold")
    if threshold is None:
        level = 1 - 3.0 * float(torch.tensor(26.0).log()) / 100
        threshold = float(ratios.quantile(level))
    expected = {}
    for name, parameter in some.model.named_parameters():
        factor = (0.5 * everything[name] / one[name]).clamp(max=1.0)
        selected = one[name] > threshold * everything[name]
        expected[name] = torch.where(selected, parameter.detach() * factor, parameter.detach())
    run(some, slug, importance=form, batch_size=size)
    for name, parameter in some.model.named_parameters():
        differing = (parameter.detach() - expected[name]).abs() > 1e-5
        # Float32 sums can put an entry at the border on the other side of the comparison.
        assert int(differing.sum()) <= 1, name


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_by_sample_the_loaders_batches_do_not_matter(slug: str) -> None:
    outcomes = []
    for size in (1, 7, 64):
        some = toy("cnn")
        run(some, slug, size=size)
        outcomes.append(weights(some.model))
    for other in outcomes[1:]:
        for name, value in outcomes[0].items():
            assert torch.allclose(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slug", SLUGS)
def test_a_file_stands_for_the_samples_to_keep(slug: str, tmp_path: Path) -> None:
    file = str(tmp_path / "importance.safetensors")
    one, other = toy("vit"), toy("vit")
    measure = "squared_norm" if slug == "lfssd" else "cross_entropy"
    importance_of(other.model, other.loader(), kind=measure).save(file)
    run(one, slug)
    request = forget(other.model).classes([3]).on("cpu")
    request.using(slug, **SETTINGS[slug], importance_file=file).run(
        other.forget_loader(), guard=None
    )
    for name, value in weights(one.model).items():
        assert torch.allclose(value, weights(other.model)[name], rtol=1e-4, atol=1e-6)


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "importance.safetensors")
    some = toy("cnn")
    importance_of(some.model, some.loader(), form="batch").save(file)
    before = weights(some.model)
    with pytest.raises(DataError, match="in form sample, found kind cross_entropy in form batch"):
        run(some, "ssd", importance_file=file)
    assert changed(before, weights(some.model)) == []


@pytest.mark.parametrize("slug", ["ssd", "lfssd"])
def test_a_threshold_that_nothing_can_exceed_changes_nothing_and_is_told(slug: str) -> None:
    some = toy("cnn")
    before = weights(some.model)
    result = run(some, slug, threshold=1e6)
    assert changed(before, weights(some.model)) == []
    assert result.notes[0].startswith(f"{slug} selected 0 of ")
    assert "D_f is a part of 0.250; lower threshold" in result.notes[1]


def test_running_statistics_keep_their_bits() -> None:
    some = toy("cnn")
    before = weights(some.model)
    run(some, "ssd", strength=0.0)
    moved = changed(before, weights(some.model))
    assert moved
    assert not any("running" in name or "num_batches" in name for name in moved)


def test_the_number_of_weights_is_told() -> None:
    note = run(toy("cnn"), "assd").notes[0]
    # 3 ln 26 percent of 1340 weights, of which those without any gradient do not count.
    assert note.startswith("assd selected 13")
    assert "of 1340 weights to dampen (alpha = " in note


def test_assd_selects_the_share_that_the_size_of_the_forget_set_calls_for() -> None:
    model = nn.Sequential(nn.Linear(249, 4))
    loader = DataLoader(TensorDataset(torch.randn(100, 249), torch.arange(100) % 4), batch_size=32)
    notes = {}
    for forgotten in (10, 40):
        request = forget(model).instances(range(forgotten)).using("assd", strength=1e6).on("cpu")
        notes[forgotten] = request.run(loader, guard=None).notes[0]
    # ln(1 + 100 * 0.1) = 2.398 percent of 1000 ratios, and ln(1 + 100 * 0.4) = 3.714 percent
    assert notes[10].startswith("assd selected 24 of 1000 weights to dampen")
    assert notes[40].startswith("assd selected 38 of 1000 weights to dampen")


def test_lfssd_does_not_read_labels() -> None:
    outcomes = []
    for shift in (0, 1):
        some = toy("cnn")
        images, labels = some.train.tensors
        own = labels == 3
        relabelled = torch.where(own, labels, (labels + shift) % 3)
        loader = DataLoader(TensorDataset(images, relabelled), batch_size=32)
        request = forget(some.model).classes([3]).using("lfssd", **SETTINGS["lfssd"]).on("cpu")
        request.run(loader, guard=None)
        outcomes.append(weights(some.model))
    assert changed(*outcomes) == []


@pytest.mark.parametrize("slug", SLUGS)
def test_multi_label_targets_are_accepted(slug: str) -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    several = nn.functional.one_hot(labels, 4).float()
    loader = DataLoader(TensorDataset(images, several), batch_size=32)
    before = weights(some.model)
    settings = {**SETTINGS[slug], **({} if slug == "assd" else {"threshold": 0.3})}
    request = forget(some.model).instances(range(40)).using(slug, **settings).on("cpu")
    request.run(loader, guard=None)
    assert changed(before, weights(some.model)) != []
