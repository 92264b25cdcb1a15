"""Going on with a training log: after a checkpoint, where it was closed, and not otherwise."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.errors import DataError
from forgetkit.testing.toys import ToyCNN, blobs
from forgetkit.training_log import AmnesiacLog
from forgetkit.written_log import WrittenLog

BATCHES = torch.arange(192).split(32)


def go(log: AmnesiacLog, model: nn.Module, sgd: torch.optim.SGD, rows: Iterable[Tensor]) -> None:
    images, labels = blobs().tensors
    for some in rows:
        log.batch(some)
        sgd.zero_grad()
        functional.cross_entropy(model(images[some]), labels[some]).backward()
        sgd.step()


def fresh() -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(3)
    model = ToyCNN()
    model.train()
    return model, torch.optim.SGD(model.parameters(), 0.1, 0.9)


@pytest.mark.parametrize("closed", [True, False])
def test_steps_behind_the_restored_checkpoint_are_set_aside(tmp_path: Path, closed: bool) -> None:
    model, sgd = fresh()
    before = copy.deepcopy(model.state_dict())
    log = AmnesiacLog(model, sgd, tmp_path)
    go(log, model, sgd, BATCHES[:3])
    saved = copy.deepcopy((model.state_dict(), sgd.state_dict(), log.steps))
    go(log, model, sgd, BATCHES[3:5])
    if closed:
        log.close()
    model, sgd = fresh()
    model.load_state_dict(saved[0])
    sgd.load_state_dict(saved[1])
    with AmnesiacLog(model, sgd, tmp_path, resume=saved[2]) as log:
        go(log, model, sgd, BATCHES[3:])
        assert log.steps == len(BATCHES)
    written = WrittenLog(tmp_path)
    assert len(written.steps) == len(BATCHES)
    assert len(list(tmp_path.glob("*.aside"))) == 2
    for name, change in written.total(written.steps).items():
        now = model.state_dict()[name].double()
        torch.testing.assert_close(now - change, before[name].double(), atol=1e-6, rtol=0)


def test_it_goes_on_without_a_number_only_with_the_weights_that_it_left(tmp_path: Path) -> None:
    model, sgd = fresh()
    log = AmnesiacLog(model, sgd, tmp_path)
    go(log, model, sgd, BATCHES[:1])
    checkpoint = copy.deepcopy(model.state_dict())
    go(log, model, sgd, BATCHES[1:2])
    log._handle.remove()  # as if the process had died
    with pytest.raises(DataError, match=r"never closed; .* resume=<steps"):
        AmnesiacLog(model, sgd, tmp_path, resume=True)
    log.close()
    last = copy.deepcopy(model.state_dict())
    model.load_state_dict(checkpoint)
    with pytest.raises(DataError, match="found other weights"):
        AmnesiacLog(model, sgd, tmp_path, resume=True)
    model.load_state_dict(last)
    with AmnesiacLog(model, sgd, tmp_path, resume=True) as log:
        assert log.steps == 2
        assert WrittenLog(tmp_path).left is None  # until it is closed again
        go(log, model, sgd, BATCHES[2:3])
    assert WrittenLog(tmp_path).left is not None
    assert len(WrittenLog(tmp_path).steps) == 3


def test_a_number_of_steps_needs_a_log_of_them(tmp_path: Path) -> None:
    model, sgd = fresh()
    with pytest.raises(DataError, match="the log of 3 steps"):
        AmnesiacLog(model, sgd, tmp_path, resume=3)
    with pytest.raises(DataError, match="count from 0"):
        AmnesiacLog(model, sgd, tmp_path, resume=-1)
    assert not sgd._optimizer_step_post_hooks
    AmnesiacLog(model, sgd, tmp_path, resume=0).close()


def test_closing_twice_keeps_the_weights_of_the_first_time(tmp_path: Path) -> None:
    model, sgd = fresh()
    with AmnesiacLog(model, sgd, tmp_path) as log:
        go(log, model, sgd, BATCHES[:1])
        log.close()
        left = WrittenLog(tmp_path).left
        nn.init.zeros_(model.get_parameter("fc.bias"))
    assert WrittenLog(tmp_path).left == left


def test_a_log_that_left_frozen_weights_out_goes_on(tmp_path: Path) -> None:
    model, sgd = fresh()
    AmnesiacLog(model, sgd, tmp_path).close()
    file = tmp_path / "log.json"
    header = json.loads(file.read_text())
    shape = header["tensors"].pop("fc.bias")
    file.write_text(json.dumps(header))
    AmnesiacLog(model, sgd, tmp_path, resume=0).close()
    assert json.loads(file.read_text())["tensors"]["fc.bias"] == shape
    file.write_text(json.dumps({**header, "tensors": {"fc.bias": [99]}}))
    with pytest.raises(DataError, match="found another one"):
        AmnesiacLog(model, sgd, tmp_path, resume=0)
