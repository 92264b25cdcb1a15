"""Worker processes are started once a run, read the same, and end with it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from forgetkit import forget
from forgetkit.data.loaders import reading_of
from forgetkit.data.workers import _Crew, workers_kept
from forgetkit.errors import DataError
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, photograph, weights

ROWS = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12))


class Counting:
    """Notes every worker process that is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, worker: int) -> None:
        self.folder.joinpath(f"{worker}-{torch.initial_seed()}").touch()

    @property
    def started(self) -> int:
        return len(list(self.folder.iterdir()))


class Noisy(TensorDataset):
    """Random augmentation, drawn in the worker processes."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = (tensor[index] for tensor in self.tensors)
        return image + 0.1 * torch.randn_like(image), label


class Broken(TensorDataset):
    """One sample cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if index == 11:
            raise OSError("truncated file")
        image, label = (tensor[index] for tensor in self.tensors)
        return image, label


def test_a_run_starts_its_workers_once(tmp_path: Path) -> None:
    some = toy("cnn")
    counting = Counting(tmp_path)
    loader = DataLoader(some.train, batch_size=32, num_workers=2, worker_init_fn=counting)
    request = forget(some.model).classes([3]).using("neggrad_plus", epochs=3, lr=1e-4)
    request.on("cpu").run(loader, guard=None)
    # both sets are read side by side, and D_f is measured meanwhile: three crews of two
    assert 2 <= counting.started <= 6
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_augmented_runs_with_workers_repeat_bit_by_bit() -> None:
    found = []
    for _ in range(2):
        some = toy("cnn")
        data = Noisy(*some.train.tensors)
        loader = DataLoader(data, batch_size=32, num_workers=2)
        request = forget(some.model).classes([3]).using("neggrad_plus", epochs=2, lr=1e-3)
        request.seed(7).on("cpu").run(loader, guard=None)
        found.append(weights(some.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_kept_workers_draw_anew_in_every_pass() -> None:
    reading = reading_of(DataLoader(Noisy(*ROWS.tensors), batch_size=4, num_workers=1))
    assert reading is not None
    with workers_kept():
        first, second = (
            torch.cat([batch[0] for batch in reading.batches([[0, 1], [2, 3]], 5)])  # type: ignore[index]  # pairs
            for _ in range(2)
        )
    assert not torch.equal(first, second)


def test_a_pass_that_is_given_up_leaves_the_next_one_whole() -> None:
    reading = reading_of(DataLoader(ROWS, batch_size=4, num_workers=2))
    assert reading is not None
    chunks = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    with workers_kept():
        next(reading.batches(chunks, 0))
        for asked in (chunks, chunks[:1], chunks[::-1]):
            found = [batch[1].tolist() for batch in reading.batches(asked, 0)]  # type: ignore[index]  # pairs
            assert found == asked
    assert multiprocessing.active_children() == []


def test_two_passes_side_by_side_do_not_mix() -> None:
    reading = reading_of(DataLoader(ROWS, batch_size=4, num_workers=1))
    assert reading is not None
    up, down = [[0, 1], [2, 3], [4, 5]], [[9], [8], [7]]
    with workers_kept():
        pairs = zip(reading.batches(up, 0), reading.batches(down, 0), strict=True)
        found = [(a[1].tolist(), b[1].tolist()) for a, b in pairs]  # type: ignore[index]  # pairs
    assert found == list(zip(up, down, strict=True))
    assert multiprocessing.active_children() == []


def test_ctrl_c_while_the_workers_end_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[_Crew] = []
    close = _Crew.close

    def interrupted(crew: _Crew) -> None:
        close(crew)
        closed.append(crew)
        if len(closed) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Crew, "close", interrupted)
    some = toy("cnn")
    before, seen = weights(some.model), photograph(some.model)
    loader = DataLoader(some.train, batch_size=64, num_workers=1)
    with pytest.raises(KeyboardInterrupt):
        forget(some.model).classes([3]).using("lau").on("cpu").run(loader, guard=None)
    assert closed
    assert changed(before, weights(some.model)) == []
    assert photograph(some.model) == seen
    assert multiprocessing.active_children() == []


def test_a_sample_that_cannot_be_read_ends_the_run_and_its_workers() -> None:
    some = toy("cnn")
    before = photograph(some.model)
    images, labels = some.train.tensors
    loader = DataLoader(Broken(images, labels), batch_size=32, num_workers=2)
    with pytest.raises(DataError, match="truncated file"):
        forget(some.model).classes([3]).using("finetune", epochs=1).on("cpu").run(loader)
    assert multiprocessing.active_children() == []
    assert before == photograph(some.model)


def test_a_pass_of_its_own_ends_its_workers_though_its_error_lives_on() -> None:
    reading = reading_of(DataLoader(Broken(*ROWS.tensors), batch_size=4, num_workers=2))
    assert reading is not None
    with pytest.raises(OSError, match="truncated file") as caught:
        list(reading.batches([[position] for position in range(len(ROWS))], 0))
    assert multiprocessing.active_children() == []
    del caught


def test_a_pass_of_its_own_that_is_given_up_ends_its_workers() -> None:
    reading = reading_of(DataLoader(ROWS, batch_size=4, num_workers=2))
    assert reading is not None
    batches = reading.batches([[0], [1], [2], [3]], 0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert multiprocessing.active_children() == []
