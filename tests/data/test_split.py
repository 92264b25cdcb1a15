"""Loader and goal in, D_f and D_r out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from forgetkit.data import sources
from forgetkit.data.sets import IndexedSet, StoredSet
from forgetkit.data.sources import first_inputs
from forgetkit.data.split import split
from forgetkit.errors import BadTarget, DataError
from forgetkit.goal import Classes, Depoison, Goal, Instances, Relabel
from forgetkit.types import SampleSet, Sets

X = torch.arange(20.0).reshape(20, 1, 1, 1)
Y = torch.arange(20) % 5
DATA = TensorDataset(X, Y)
BATCHES = [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[16:], Y[16:])]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(X[i], Y[i]) for i in range(20)])


class Counting(Dataset[tuple[Tensor, int]]):
    """Counts how many images are decoded."""

    def __init__(self, shift: int = 0) -> None:
        self.read = 0
        self.shift = shift

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return X[index], (int(Y[index]) + self.shift) % 5


def _split(loader: object, goal: Goal, **options: object) -> Sets:
    classes = goal.classes if isinstance(goal, Classes) else ()
    return split(loader, goal, num_classes=5, forget_classes=classes, **options)  # type: ignore[arg-type]  # short


def _pixels(samples: SampleSet) -> list[float]:
    parts = [batch.inputs for batch in samples.batches()]
    return torch.cat([part for part in parts if isinstance(part, Tensor)]).flatten().tolist()


LOADERS = {
    "shuffled": lambda: DataLoader(DATA, batch_size=6, shuffle=True),
    "data set": lambda: DATA,
    "whole batches": lambda: DataLoader(
        DATA, batch_size=None, sampler=BatchSampler(SequentialSampler(DATA), 7, drop_last=True)
    ),
    "list": lambda: BATCHES,
    "batches as samples": lambda: DataLoader(BATCHES, batch_size=None),  # type: ignore[arg-type]  # works in torch
}
ONCE = {
    "generator": lambda: (batch for batch in BATCHES),
    "iterator of a loader": lambda: iter(DataLoader(DATA, batch_size=6)),
    "iterable data set": lambda: DataLoader(Stream(), batch_size=6),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("goal", "positions"),
    [
        (Classes([3, 1]), [1, 3, 6, 8, 11, 13, 16, 18]),
        (Instances([17, 2]), [2, 17]),
        (Depoison([0]), [0]),
        (Relabel({4: 0, 2: 3}), [2, 4]),
    ],
)
def test_loaders_that_can_be_read_again(name: str, goal: Goal, positions: list[int]) -> None:
    sets = _split(LOADERS[name](), goal)  # type: ignore[no-untyped-call]  # a table
    others = [i for i in range(20) if i not in positions]
    assert sets.retain is not None
    assert sets.forget.positions.tolist() == positions
    assert _pixels(sets.forget) == positions
    assert torch.equal(sets.forget.labels, Y[positions])
    assert _pixels(sets.retain) == others
    assert torch.equal(sets.retain.labels, Y[others])
    assert sets.validation is None


@pytest.mark.parametrize("name", ONCE)
def test_streams_keep_what_is_to_be_forgotten_and_as_many_others_as_asked(name: str) -> None:
    others = [i for i in range(20) if i % 5 != 3]
    for goal in (Classes([3]), Instances([13, 3, 18, 8])):
        for spare in (None, 0, 5, 99):
            sets = _split(ONCE[name](), goal, spare=spare, seed=4)  # type: ignore[no-untyped-call]  # a table
            assert isinstance(sets.forget, StoredSet)
            assert _pixels(sets.forget) == [3, 8, 13, 18]
            assert sets.forget.positions.tolist() == [3, 8, 13, 18]
            assert sets.forget.batch_size in (6, 8)
            if spare is None:
                assert sets.spare is None
                assert sets.retain is not None
                assert _pixels(sets.retain) == sets.retain.positions.tolist() == others
                continue
            assert sets.retain is None
            if spare == 0:
                assert sets.spare is None
                continue
            assert sets.spare is not None
            kept = _pixels(sets.spare)
            assert len(kept) == min(spare, 16)
            assert kept == sets.spare.positions.tolist() == sorted(set(kept) & set(others))
            assert torch.equal(sets.spare.labels, Y[sets.spare.positions])


def test_a_stream_may_fill_one_tensor_again_and_again() -> None:
    def refilled() -> Iterator[tuple[Tensor, Tensor]]:
        images = torch.empty(4, 1, 1, 1)
        for first in range(0, 20, 4):
            yield images.copy_(X[first : first + 4]), Y[first : first + 4]

    for spare in (None, 16):
        sets = _split(refilled(), Classes([3]), spare=spare)
        rest = sets.retain or sets.spare
        assert rest is not None
        assert _pixels(sets.forget) + _pixels(rest) == [
            *range(3, 20, 5), *(i for i in range(20) if i % 5 != 3)
        ]  # fmt: skip


def test_every_other_sample_of_a_stream_may_be_kept_by_the_seed() -> None:
    def drawn(seed: int) -> tuple[int, ...]:
        sets = _split(iter(BATCHES), Instances([0]), spare=4, seed=seed)
        assert sets.spare is not None
        return tuple(sets.spare.positions.tolist())

    draws = [drawn(seed) for seed in range(200)]
    assert draws[7] == drawn(7)
    counts = torch.bincount(torch.tensor(draws).flatten(), minlength=20)
    assert counts[0] == 0  # to be forgotten
    # 4 of 19 in 200 draws are 42 for each, with a standard deviation of 5.8
    assert 20 < counts[1:].min() < counts[1:].max() < 65


@pytest.mark.parametrize("name", [*LOADERS, *ONCE])
def test_first_inputs_take_nothing_away(name: str) -> None:
    loader = (LOADERS | ONCE)[name]()
    first = first_inputs(loader, "loader")  # type: ignore[arg-type]  # a table
    if name in ("shuffled", "data set", "whole batches"):
        assert isinstance(first, Tensor)
        assert first.flatten().tolist() == [0, 1]
    else:
        assert first is None
        assert len(_split(loader, Classes([0])).forget) == 4


def test_everything_in_the_loader() -> None:
    for loader in (DataLoader(Subset(DATA, [4, 9, 2])), iter([(X[[4, 9, 2]], Y[[4, 9, 2]])])):
        sets = _split(loader, Instances(), retain=DataLoader(Subset(DATA, [0, 1]), batch_size=2))
        assert _pixels(sets.forget) == [4, 9, 2]
        assert sets.retain is not None
        assert _pixels(sets.retain) == [0, 1]
    alone = _split(DataLoader(Subset(DATA, [4, 9])), Classes([4]))
    assert alone.retain is None
    with pytest.raises(DataError, match="samples to forget only"):
        _split(DataLoader(Subset(DATA, [4, 9])), Classes([4]), need_retain=True)


def test_relabel_keeps_old_and_new_labels() -> None:
    sets = _split(DATA, Relabel({4: 0, 2: 3}))
    assert isinstance(sets.forget, IndexedSet)
    assert sets.forget.labels.tolist() == [2, 4]
    assert sets.forget.new_labels is not None
    assert sets.forget.new_labels.tolist() == [3, 0]
    everything = _split([(X[:3], Y[:3])], Relabel([4, 3, 0]))
    assert isinstance(everything.forget, StoredSet)
    assert everything.forget.new_labels is not None
    assert everything.forget.new_labels.tolist() == [4, 3, 0]


def test_explicit_sets() -> None:
    kept = [(X[Y != 3], Y[Y != 3])]
    sets = _split(DATA, Classes([3]), retain=iter(kept), validate=DataLoader(DATA, batch_size=4))
    assert sets.retain is not None
    assert sets.validation is not None
    assert len(sets.retain) == 16
    assert len(sets.validation) == 20


def test_multi_label() -> None:
    labels = torch.zeros(4, 5)
    labels[0, 3] = labels[1, [0, 3]] = labels[2, 1] = 1
    sets = _split(TensorDataset(X[:4], labels), Classes([3]))
    assert sets.forget.positions.tolist() == [0, 1]
    assert torch.equal(sets.forget.labels, labels[:2])
    streamed = _split(iter([(X[:4], labels)]), Classes([3]))
    assert torch.equal(streamed.forget.labels, labels[:2])
    with pytest.raises(BadTarget, match="multi-label"):
        _split(TensorDataset(X[:4], labels), Relabel({0: 1}))


@pytest.mark.parametrize(
    ("loader", "goal", "message"),
    [
        (DATA, Classes([3]), None),
        (DataLoader(Subset(DATA, [0, 1, 6])), Classes([3]), "labels are 0, 1;"),
        (iter([(X[:2], Y[:2])]), Classes([3]), "labels are 0, 1;"),
        (DATA, Instances([3, 20]), r"loader.dataset, which has 20 .*last one \(19\): 20"),
        (iter(BATCHES), Instances([20]), "the stream of batches, which has 20"),
        (DataLoader(DATA, sampler=SubsetRandomSampler([1, 2])), Instances([0]), "sampler: 0"),
        (DATA, Relabel({25: 1}), "expected positions"),
        (DATA, Relabel({1: 5}), "from 0 to 4.*found 5 for position 1"),
        (DATA, Relabel({1: 1, 2: 0}), "differ from the old"),
        (DATA, Relabel([1, 2]), "each of the 20 samples"),
    ],
)
def test_targets_that_do_not_fit(loader: object, goal: Goal, message: str | None) -> None:
    if message is None:
        assert len(_split(loader, goal).forget) == 4
        return
    with pytest.raises(BadTarget, match=message):
        _split(loader, goal)


class Broken(Counting):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7:
            raise OSError("truncated file")
        return super().__getitem__(index)


class Pictures(Counting):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return Image.new("L", (2, 2)), 0  # type: ignore[return-value]  # on purpose


class Uneven(Counting):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(1, index + 1, 2), 0


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (3, "expected an iterable"),
        ("data", "expected an iterable"),
        (None, "expected an iterable"),
        (Stream(), "DataLoader over it"),
        ((X, Y), r"one batch, a tuple; pass a list of it, \[batch\]"),
        ([X, Y], "one batch, a list"),
        ((X.numpy(), Y.numpy()), "one batch, a tuple"),
        ({"image": X, "label": Y}, "one batch, a dict"),
        ([X, X], "without labels"),
        ([(X.numpy(), Y.numpy())], "found ndarray; convert them with torch.as_tensor, in"),
        ([], "yields nothing"),
        (iter([]), "yields nothing"),
        ([(X[:0], Y[:0])], "yields nothing"),
        (TensorDataset(X[:0], Y[:0]), "empty data set"),
        (DataLoader(DATA, sampler=SubsetRandomSampler([])), "draws none"),
        (DataLoader(DATA, sampler=Endless()), "with a length"),
        (TensorDataset(X), "1 entries"),
        (TensorDataset(X, Y - 1), "found 4 outside, the first of them -1 at position 0"),
        (iter([(X[:3], Y[:3] + 3)]), "found 1 outside, the first of them 5 at position 2"),
        (TensorDataset(X, Y + 0.5), "whole numbers"),
        (TensorDataset(X, torch.full((20, 5), 0.2)), "soft labels"),
        (TensorDataset(X, torch.zeros(20, 7)), "soft labels"),
        ([(X[:3], Y[:3]), {"image": X[:3], "label": Y[:3]}], "batch 1 .*one form"),
        ([(X[:3], Y[:3]), (X[:3], torch.zeros(3, 5))], "one kind of label"),
        ([(X[:3], Y[:3]), (torch.zeros(1, 2), Y[:1])], "one shape"),
        ([(X[:3], Y[:2])], "2 labels for 3 images"),
        ([(X[0], 3)], "one label"),
        ([(X / 0, Y)], "NaN or infinity"),
        (Pictures(), "ToTensor"),
        (DataLoader(Pictures(), batch_size=2, num_workers=1), "ToTensor"),
        (DataLoader(Uneven(), batch_size=4), "resize or crop"),
        (DataLoader(Broken(), batch_size=4), "batch 1 .*positions 4, 5, 6, 7, .*truncated file"),
    ],
)
def test_data_that_cannot_be_used(loader: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _split(loader, Classes([3]))


def test_images_that_are_not_finite_are_found_when_read() -> None:
    images = X.clone()
    images[13] = torch.nan
    sets = _split(TensorDataset(images, Y), Classes([3]))
    with pytest.raises(DataError, match=r"batch 1 .*rows 0;"):
        list(sets.forget.batches(2))


def test_retain_data_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="found 4 of 20; remove them"):
        _split(DATA, Classes([3]), retain=DataLoader(DATA))
    with pytest.raises(DataError, match="found 2 of them in it again"):
        _split(DATA, Instances([3, 5]), retain=DataLoader(Subset(DATA, [5, 3, 7])))
    assert _split(DATA, Instances([3, 5]), retain=Subset(DATA, [1])).retain is not None
    with pytest.raises(DataError, match=r"^retain: expected labels from 0 to 4"):
        _split(DATA, Classes([3]), retain=[(X, Y + 5)])
    with pytest.raises(DataError, match=r"^validate: expected batches"):
        _split(DATA, Classes([3]), validate=[])


class Drawn(Sampler[int]):
    """A sampler of the user's own, which draws from everywhere."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        torch.rand(3, generator=self.generator)
        torch.rand(1), random.random(), np.random.rand()  # noqa: S311, NPY002
        while True:
            yield from (8, 3, 13)


def test_only_what_the_sampler_draws_is_in_the_loader() -> None:
    weights = [1.0] * 10 + [0.0] * 10
    for sampler, expected in (
        (SubsetRandomSampler([8, 3, 13]), [3, 8, 13]),
        (WeightedRandomSampler(weights, 5), [3, 8]),
        (Drawn(), [3, 8, 13]),
    ):
        loader = DataLoader(DATA, batch_size=4, sampler=sampler)
        assert _split(loader, Classes([3])).forget.positions.tolist() == expected
    loader = DataLoader(DATA, batch_sampler=BatchSampler(SubsetRandomSampler([3, 0]), 2, False))
    sets = _split(loader, Classes([3]))
    assert sets.forget.positions.tolist() == [3]
    assert sets.forget.batch_size == 2


def test_loader_and_random_states_are_left_alone() -> None:
    class Random(Counting):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            torch.rand(1), random.random(), np.random.rand()  # noqa: S311, NPY002
            return super().__getitem__(index)

    generator = torch.Generator().manual_seed(0)
    sampler = Drawn()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    states = generator.get_state(), sampler.generator.get_state()
    _split(DataLoader(Random(), batch_size=4, shuffle=True, generator=generator), Classes([3]))
    _split(DataLoader(Random(), batch_size=4, sampler=sampler), Classes([3]))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(sampler.generator.get_state(), states[1])


@pytest.mark.parametrize("wrap", ["none", "subset", "concat"])
@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("targets", Y.tolist()),
        ("targets", Y),
        ("targets", Y.numpy()),
        ("labels", Y.numpy()),
        ("_labels", Y.tolist()),
        ("samples", [("path", int(label)) for label in Y]),
        ("imgs", [("path", int(label)) for label in Y]),
    ],
)
def test_labels_without_decoding(
    attribute: str, value: object, wrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PROBED", 5)
    inner = Counting()
    setattr(inner, attribute, value)
    dataset: Dataset[object] = inner
    if wrap == "subset":
        dataset = Subset(Subset(inner, range(20)), list(range(20)))
    elif wrap == "concat":
        dataset = ConcatDataset([inner, inner])
    sets = _split(DataLoader(dataset, batch_size=4), Classes([3]))
    assert inner.read == 5
    assert set(sets.forget.labels.tolist()) == {3}
    assert len(sets.forget) == (8 if wrap == "concat" else 4)


def _other_labels(kind: str) -> Counting:
    dataset = Counting(shift=1 if kind == "remapped" else 0)
    values: dict[str, object] = {
        "shorter": Y[:10],
        "names": ["cat"] * 20,
        "boxes": [{"boxes": 1}] * 20,
        "transform": Y + 1,
    }
    dataset.targets = values.get(kind, Y)  # type: ignore[attr-defined]  # as torchvision does
    if kind == "transform":
        dataset.target_transform = int  # type: ignore[attr-defined]  # as torchvision does
    return dataset


@pytest.mark.parametrize("kind", ["remapped", "shorter", "names", "boxes", "transform"])
def test_stored_labels_that_are_not_the_samples_own_are_not_trusted(kind: str) -> None:
    dataset = _other_labels(kind)
    sets = _split(DataLoader(dataset, batch_size=4), Classes([3]))
    assert sets.forget.positions.tolist() == (
        [2, 7, 12, 17] if kind == "remapped" else [3, 8, 13, 18]
    )
    assert dataset.read == (40 if kind == "remapped" else 20)


@pytest.mark.parametrize("wrap", ["none", "subset", "concat"])
def test_labels_that_were_corrected_in_some_samples_alone_are_read(wrap: str) -> None:
    inner = Counting()
    inner.targets = Y.clone()  # type: ignore[attr-defined]  # as torchvision does
    inner.targets[[3, 8]] = 2  # type: ignore[attr-defined]  # both ends are right
    dataset: Dataset[object] = inner
    if wrap == "subset":
        dataset = Subset(inner, list(range(20)))
    elif wrap == "concat":
        dataset = ConcatDataset([inner, DATA])
    sets = _split(DataLoader(dataset, batch_size=4), Classes([3]))
    assert sets.forget.positions.tolist()[:4] == [3, 8, 13, 18]


def test_data_sets_of_libraries_are_believed_by_two_samples() -> None:
    known = type("MNIST", (Counting,), {"__module__": "torchvision.datasets.mnist"})()
    known.targets = Y
    assert len(_split(DataLoader(Subset(known, range(20)), batch_size=4), Classes([3])).forget) == 4
    assert known.read == 2


def test_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor

    for name, shade in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (4, 4), shade).save(tmp_path / name / f"{number}.png")
    loader = DataLoader(ImageFolder(str(tmp_path), ToTensor()), batch_size=2)
    sets = split(loader, Classes([1]), num_classes=2, forget_classes=(1,))
    assert sets.forget.positions.tolist() == [3, 4, 5]
    assert all(bool((batch.inputs == 1).all()) for batch in sets.forget.batches())  # type: ignore[union-attr]  # tensors
    with pytest.raises(DataError, match="ToTensor"):
        split(
            DataLoader(ImageFolder(str(tmp_path))), Classes([1]), num_classes=2, forget_classes=(1,)
        )


@pytest.mark.parametrize("key", ["label", "labels", "fine_label"])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_data_set_of_the_datasets_library(
    key: str, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import ClassLabel, Features, Value
    from datasets import Dataset as Table

    from forgetkit.goal import class_names

    monkeypatch.setattr(sources, "PROBED", 2)
    features = Features({"id": Value("int64"), key: ClassLabel(names=["a", "b", "c"])})
    table = Table.from_dict({"id": list(range(9)), key: [0, 1, 2] * 3}, features=features)
    decoded: list[int] = []

    def transform(rows: dict[str, list[int]]) -> dict[str, object]:
        decoded.extend(rows["id"])
        images = [torch.full((1, 2, 2), float(number)) for number in rows["id"]]
        return {"pixel_values": images, key: rows[key]}

    dataset = table.select([8, 1, 2, 3, 4, 5, 6, 7, 0]).with_transform(transform)
    loader = DataLoader(dataset, batch_size=4, collate_fn=default_collate) if loaded else dataset
    sets = split(loader, Classes([2]), num_classes=3, forget_classes=(2,))
    assert sets.forget.positions.tolist() == [0, 2, 5]
    assert len(decoded) == 2
    assert [b.inputs.flatten()[0].item() for b in sets.forget.batches(1)] == [8.0, 2.0, 5.0]  # type: ignore[union-attr]  # tensors
    assert class_names(torch.nn.Linear(1, 1), loader) == ["a", "b", "c"]


def test_a_transform_that_changes_labels_is_seen() -> None:
    from datasets import Dataset as Table

    def corrected(rows: dict[str, list[int]]) -> dict[str, object]:
        labels = [0 if label < 3 else 3 for label in rows["label"]]
        return {"pixel_values": [torch.zeros(1, 2, 2)] * len(labels), "label": labels}

    table = Table.from_dict({"label": [0, 1, 2, 3] * 4}).with_transform(corrected)
    sets = split(table, Classes([0]), num_classes=4, forget_classes=(0,))
    assert len(sets.forget) == 12
