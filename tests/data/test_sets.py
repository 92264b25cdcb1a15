"""Sample sets: order, shuffling, shares, parts, random state."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, TensorDataset

from forgetkit.batch_count import batches_in
from forgetkit.data.loaders import reading_of
from forgetkit.data.randomness import repeats
from forgetkit.data.sets import IndexedSet, StoredSet, cut
from forgetkit.errors import DataError
from forgetkit.types import Batch, Inputs, SampleSet

X = torch.arange(11.0)[:, None].repeat(1, 2)
Y = torch.arange(11) % 3
ROWS = torch.tensor([9, 1, 4, 2, 10, 0, 7])


def _indexed(workers: int = 0) -> SampleSet:
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, num_workers=workers)
    reading = reading_of(loader)
    assert reading is not None
    return IndexedSet(reading, ROWS, Y[ROWS])


def _stored() -> SampleSet:
    return StoredSet(X[ROWS], Y[ROWS], ROWS, 3)


def _mapping() -> SampleSet:
    return StoredSet({"pixel_values": X[ROWS], "mask": X[ROWS] + 1}, Y[ROWS], ROWS, 3)


def _images(batch: Batch) -> Tensor:
    return batch.inputs if isinstance(batch.inputs, Tensor) else batch.inputs["pixel_values"]


def _joined(batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    found = list(batches)
    return (
        torch.cat([_images(batch) for batch in found]),
        torch.cat([batch.labels for batch in found]),
        torch.cat([batch.index for batch in found]),
    )


every_set = pytest.mark.parametrize(
    "samples", [_indexed(), _indexed(2), _stored(), _mapping()], ids=["map", "workers", "st", "kw"]
)


@every_set
def test_in_order(samples: SampleSet) -> None:
    for _ in range(2):
        batches = list(samples.batches())
        assert [len(batch) for batch in batches] == [3, 3, 1]
        assert [batch.total for batch in batches] == [3, 3, 1]
        images, labels, index = _joined(batches)
        assert torch.equal(images, X[ROWS])
        assert torch.equal(labels, Y[ROWS])
        assert torch.equal(index, torch.arange(7))
    assert [len(batch) for batch in samples.batches(5)] == [5, 2]
    assert samples.batch_size == 3
    assert len(samples) == 7


@every_set
def test_shuffled_is_a_function_of_the_generator(samples: SampleSet) -> None:
    images, labels, index = _joined(samples.batches(2, generator=Generator().manual_seed(1)))
    again = _joined(samples.batches(2, generator=Generator().manual_seed(1)))
    assert torch.equal(index, torch.randperm(7, generator=Generator().manual_seed(1)))
    assert torch.equal(images, X[ROWS][index])
    assert torch.equal(labels, Y[ROWS][index])
    assert torch.equal(index, again[2])
    assert index.tolist() != list(range(7))


@pytest.mark.slow
@every_set
@pytest.mark.parametrize("world", [2, 3, 4])
def test_shares_make_up_the_whole(samples: SampleSet, world: int) -> None:
    def seeded() -> Generator:
        return Generator().manual_seed(4)

    whole = list(samples.batches(3, generator=seeded()))
    shares = [
        list(samples.batches(3, generator=seeded(), shard=(rank, world))) for rank in range(world)
    ]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        for rank in range(world):
            part = shares[rank][step]
            assert part.total == len(batch)
            assert torch.equal(_images(part), _images(batch)[rank::world])
            assert torch.equal(part.labels, batch.labels[rank::world])
            assert torch.equal(part.index, batch.index[rank::world])
    *_, empty = samples.batches(1, generator=seeded(), shard=(world - 1, world))
    assert len(empty) == 0
    assert _images(empty).shape == (0, 2)


@every_set
def test_in_random_order_no_batch_has_a_single_image(samples: SampleSet) -> None:
    def sizes(size: int) -> list[int]:
        generator = Generator().manual_seed(1)
        return [len(batch) for batch in samples.batches(size, generator=generator)]

    assert sizes(3) == [3, 4]
    assert sizes(2) == [2, 2, 3]
    assert sizes(6) == [7]
    assert sizes(5) == [5, 2]
    assert sizes(1) == [1] * 7
    assert [len(batch) for batch in samples.batches(3)] == [3, 3, 1]


@every_set
def test_taken_parts_keep_positions(samples: SampleSet) -> None:
    part = samples.take(torch.tensor([5, 0])).take(torch.tensor([1]))
    assert part.positions.tolist() == [9]
    images, labels, index = _joined(part.batches())
    assert torch.equal(images, X[[9]])
    assert torch.equal(labels, Y[[9]])
    assert index.tolist() == [0]
    assert list(samples.take(torch.tensor([], dtype=torch.int64)).batches()) == []


@every_set
def test_reading_draws_no_global_random_number(samples: SampleSet) -> None:
    before = torch.get_rng_state()
    list(samples.batches())
    list(samples.batches(generator=Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def _first_two(samples: SampleSet) -> Inputs:
    return next(iter(samples.take(torch.arange(2)).batches())).inputs


@every_set
def test_a_part_reads_its_own_images(samples: SampleSet) -> None:
    part = _first_two(samples)
    images = part if isinstance(part, Tensor) else part["pixel_values"]
    assert torch.equal(images, X[ROWS[:2]])


def test_new_labels_go_along() -> None:
    for samples in (_indexed(), _stored()):
        assert isinstance(samples, (IndexedSet, StoredSet))
        assert samples.new_labels is None
        new = samples.relabelled(torch.arange(7))
        assert torch.equal(new.labels, samples.labels)
        part = new.take(torch.tensor([6, 2])).new_labels
        assert part is not None
        assert part.tolist() == [6, 2]


def test_defaults_of_a_stored_set() -> None:
    samples = StoredSet(X, Y)
    assert samples.positions.tolist() == list(range(11))
    assert samples.batch_size == 64
    with pytest.raises(DataError, match="one length"):
        StoredSet(X, Y[:3])


class Noisy(TensorDataset):
    """Adds noise from torch's global generator, as augmentations do."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = (tensor[index] for tensor in self.tensors)
        return image + torch.rand(()), label


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_differs_between_reads(workers: int) -> None:
    reading = reading_of(DataLoader(Noisy(X, Y), batch_size=4, num_workers=workers))
    assert reading is not None
    samples = IndexedSet(reading, ROWS, Y[ROWS])
    left, right = _first_two(samples), _first_two(samples)
    assert isinstance(left, Tensor)
    assert isinstance(right, Tensor)
    assert not torch.equal(left, right)


def test_labels_that_change_are_refused() -> None:
    reading = reading_of(DataLoader(TensorDataset(X, Y), batch_size=3))
    assert reading is not None
    wrong = Y[ROWS].clone()
    wrong[4] = 0
    with pytest.raises(DataError, match=r"batch 1 .*position 10 to have the label 0 .*found 1"):
        list(IndexedSet(reading, ROWS, wrong).batches())


def _drops(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples[1:]]), torch.stack([y for _, y in samples[1:]])


def test_a_collate_function_that_drops_samples_is_refused() -> None:
    reading = reading_of(DataLoader(TensorDataset(X, Y), batch_size=3, collate_fn=_drops))
    assert reading is not None
    with pytest.raises(DataError, match="expected 3 samples, found 2"):
        list(IndexedSet(reading, ROWS, Y[ROWS]).batches())


@pytest.mark.parametrize("shuffled", [True, False])
def test_batches_are_counted_as_they_are_cut(shuffled: bool) -> None:
    generator = Generator().manual_seed(0) if shuffled else None
    for samples in (1, 2, 15, 16, 17, 64, 65):
        for size in (1, 2, 16, 100):
            chunks = cut(samples, size, generator, training=True)
            assert batches_in(samples, size) == len(chunks), (samples, size)
            assert sorted(torch.cat(chunks).tolist()) == list(range(samples))
            plain = cut(samples, size, generator)
            assert len(plain) == (len(chunks) if shuffled else -(-samples // size))


class Flipping(TensorDataset):
    """Mirrors every other sample, at random."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = (tensor[index] for tensor in self.tensors)
        return image.flip(0) if torch.rand(()) < 0.5 else image, label


@pytest.mark.parametrize("seed", range(16))
def test_a_random_flip_is_noticed_whatever_the_seed(seed: int) -> None:
    images, labels = torch.randn(40, 3), torch.zeros(40, dtype=torch.int64)
    found = []
    for data in (Flipping(images, labels), TensorDataset(images, labels)):
        reading = reading_of(DataLoader(data, batch_size=4))
        assert reading is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(repeats(IndexedSet(reading, torch.arange(40), labels)))
    assert found == [False, True]
