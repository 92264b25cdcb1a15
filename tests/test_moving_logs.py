"""What a training log sees of a training in which the model or its optimisers change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.errors import DataError
from forgetkit.testing.toys import ToyCNN, blobs
from forgetkit.training_log import AmnesiacLog
from forgetkit.written_log import WrittenLog

BATCHES = torch.arange(96).split(32)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def step(
    model: nn.Module, log: AmnesiacLog, rows: Tensor, *optimizers: torch.optim.Optimizer
) -> None:
    images, labels = blobs().tensors
    log.batch(rows)
    logits = model(images[rows].to(next(model.parameters()).dtype))
    for optimizer in optimizers:
        optimizer.zero_grad()
    functional.cross_entropy(logits, labels[rows]).backward()
    for optimizer in optimizers:
        optimizer.step()


def fresh() -> ToyCNN:
    torch.manual_seed(3)
    model = ToyCNN()
    model.train()
    return model


def moved_by_the_log(folder: Path, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Compare the sum of all changes with what training did."""
    log = WrittenLog(folder)
    total = log.total(log.steps)
    for name, value in after.items():
        change = value.double() - before[name].double()
        torch.testing.assert_close(
            total.get(name, torch.zeros_like(change)), change, atol=1e-6, rtol=0
        )


def test_layers_that_are_thawed_during_training_are_logged(tmp_path: Path) -> None:
    model = fresh()
    body = list(model.body.parameters())
    for parameter in body:
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = state(model)
    with AmnesiacLog(model, optimizer, tmp_path) as log:
        for number, rows in enumerate(BATCHES):
            for parameter in body if number == 1 else []:
                parameter.requires_grad_(True)
            step(model, log, rows, optimizer)
    moved_by_the_log(tmp_path, before, state(model))


@pytest.mark.parametrize("convert", [lambda m: m.double(), lambda m: m.to(torch.float64)])
def test_a_model_that_is_converted_after_the_log_was_opened_is_logged(
    tmp_path: Path, convert: Callable[[nn.Module], nn.Module]
) -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with AmnesiacLog(model, optimizer, tmp_path) as log:
        convert(model)
        before = state(model)
        for rows in BATCHES:
            step(model, log, rows, optimizer)
    assert bool((state(model)["body.1.running_mean"] != before["body.1.running_mean"]).any())
    moved_by_the_log(tmp_path, before, state(model))


def test_of_two_optimisers_the_last_one_sees_all_and_the_first_is_refused(tmp_path: Path) -> None:
    for watched in (1, 0):
        model = fresh()
        both = [torch.optim.SGD(part.parameters(), 0.1) for part in (model.body, model.fc)]
        before, folder = state(model), tmp_path / str(watched)
        with AmnesiacLog(model, both[watched], folder) as log:
            step(model, log, BATCHES[0], *both)
            if watched == 0:
                with pytest.raises(DataError, match=r"found 2 that moved .* fc.weight"):
                    step(model, log, BATCHES[1], *both)
                continue
            step(model, log, BATCHES[1], *both)
        moved_by_the_log(folder, before, state(model))


def test_weights_that_no_optimiser_holds_may_stay_unfrozen(tmp_path: Path) -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.fc.parameters(), 0.1)
    before = state(model)
    with AmnesiacLog(model, optimizer, tmp_path) as log:
        for rows in BATCHES:
            step(model, log, rows, optimizer)
    moved_by_the_log(tmp_path, before, state(model))


def test_a_step_whose_batch_was_not_announced_is_refused_where_all_are_tracked(
    tmp_path: Path,
) -> None:
    images, labels = blobs().tensors
    for sensitive in (None, {0}):
        model = fresh()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with AmnesiacLog(model, optimizer, tmp_path / f"{sensitive}", sensitive=sensitive) as log:
            step(model, log, BATCHES[0], optimizer)
            functional.cross_entropy(model(images[32:64]), labels[32:64]).backward()
            if sensitive is None:
                with pytest.raises(DataError, match="found step 1 without it"):
                    optimizer.step()
            else:
                optimizer.step()
            assert log.steps == (1 if sensitive is None else 2)
