"""The log of training steps: what it stores, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from forgetkit.errors import DataError
from forgetkit.log_header import weights_digest
from forgetkit.log_storage import hit_chance
from forgetkit.testing import toy
from forgetkit.testing.toys import ToyCNN, blobs
from forgetkit.training_log import AmnesiacLog, Numbered, Sensitive
from forgetkit.written_log import WrittenLog

BATCHES = [list(range(start, start + 32)) for start in range(0, 192, 32)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def train(
    model: nn.Module, folder: Path | None, sensitive: Sensitive = None, *, parts: int = 1
) -> list[dict[str, Tensor]]:
    """Train six steps with momentum, and return the state before each and after the last."""
    torch.manual_seed(7)
    images, labels = blobs().tensors
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    log = None if folder is None else AmnesiacLog(model, optimizer, folder, sensitive=sensitive)
    model.train()
    states = [state(model)]
    for rows in BATCHES:
        optimizer.zero_grad()
        for part in torch.tensor(rows).chunk(parts):
            if log is not None:
                log.batch(part)
            functional.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
        schedule.step()
        states.append(state(model))
    if log is not None:
        log.close()
    return states


def test_the_hook_leaves_training_bit_identical(tmp_path: Path) -> None:
    plain, logged = toy("cnn").model, toy("cnn").model
    without, with_log = train(plain, None), train(logged, tmp_path)
    for left, right in zip(without, with_log, strict=True):
        assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_sum_of_the_changes_is_what_the_logged_steps_did(tmp_path: Path, parts: int) -> None:
    states = train(toy("cnn").model, tmp_path, sensitive={0, 5, 70, 191}, parts=parts)
    log = WrittenLog(tmp_path)
    assert [sorted(step.positions) for step in log.steps] == [[0, 5], [70], [191]]
    expected = {
        name: sum((states[k + 1][name] - states[k][name]).double() for k in (0, 2, 5))
        for name in states[0]
    }
    total = log.total(log.steps)
    assert "body.1.running_mean" in total
    assert int(total["body.1.num_batches_tracked"]) == 3 * parts
    for name, change in expected.items():
        torch.testing.assert_close(total[name], change, atol=1e-7, rtol=0)


def test_the_steps_that_held_a_sample_are_found(tmp_path: Path) -> None:
    train(toy("cnn").model, tmp_path, sensitive=[0, 5, 70, 200])
    log = WrittenLog(tmp_path)
    assert [sorted(s.positions) for s in log.covering([5, 70])] == [[0, 5], [70]]
    assert log.covering([200]) == []  # tracked, but in no batch
    with pytest.raises(DataError, match="position 33"):
        log.covering([5, 33])
    assert [step.lr for step in log.steps] == pytest.approx([0.1, 0.1 * 0.9**2])


def test_a_function_may_say_what_is_sensitive(tmp_path: Path) -> None:
    train(toy("cnn").model, tmp_path, sensitive=lambda position: position % 64 == 0)
    log = WrittenLog(tmp_path)
    assert [sorted(step.positions) for step in log.steps] == [[0], [64], [128]]
    with pytest.raises(DataError, match="tracks every sample"):
        log.covering([192])


@pytest.mark.parametrize("form", [torch.tensor, np.array, iter])
def test_positions_come_in_any_form(tmp_path: Path, form: Callable[[list[float]], Any]) -> None:
    train(toy("cnn").model, tmp_path, sensitive=form([0, 5, 70, 200]))
    train(toy("cnn").model, tmp_path / "list", sensitive=[0, 5, 70, 200])
    names = {file.name for file in (tmp_path / "list").iterdir()}
    assert names == {file.name for file in tmp_path.iterdir()} - {"list"}
    with pytest.raises(DataError, match="expected positions in the data set"):
        train(toy("cnn").model, tmp_path / "other", sensitive=form([0.5]))


def test_tensors_that_did_not_move_are_left_out_and_half_types_lose_nothing(tmp_path: Path) -> None:
    model = toy("vit").model.to(torch.bfloat16)
    frozen = model.get_parameter("norm.weight").requires_grad_(False)
    assert not frozen.requires_grad
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    before = state(model)
    images, labels = blobs().tensors
    with AmnesiacLog(model, optimizer, tmp_path) as log:
        log.batch([0, 1])
        functional.cross_entropy(model(images[:2].bfloat16()), labels[:2]).backward()
        optimizer.step()
    stored = load_file(tmp_path / "step-000000000.safetensors")
    assert "norm.weight" not in stored
    assert stored["head.weight"].dtype == torch.float32
    now = model.get_parameter("head.weight").detach().float()
    assert (now - stored["head.weight"]).equal(before["head.weight"].float())


def test_after_close_nothing_is_written(tmp_path: Path) -> None:
    model = toy("cnn").model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    AmnesiacLog(model, optimizer, tmp_path).close()
    assert not optimizer._optimizer_step_post_hooks
    train(model, None)
    assert WrittenLog(tmp_path).steps == []


def test_a_log_goes_on_only_when_asked_to_and_only_for_the_same_model(tmp_path: Path) -> None:
    model = toy("cnn").model
    train(model, tmp_path, sensitive={3})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(DataError, match="resume=True"):
        AmnesiacLog(model, optimizer, tmp_path, sensitive={3})
    with pytest.raises(DataError, match="another one"):
        AmnesiacLog(model, optimizer, tmp_path, sensitive={4}, resume=True)
    other = ToyCNN(classes=5)
    with pytest.raises(DataError, match="another one"):
        AmnesiacLog(other, optimizer, tmp_path, sensitive={3}, resume=True)
    sized = tmp_path / "sized"
    AmnesiacLog(model, optimizer, sized, samples=240).close()
    with pytest.raises(DataError, match="another one"):
        AmnesiacLog(model, optimizer, sized, samples=200, resume=True)
    AmnesiacLog(model, optimizer, sized, samples=240, resume=True).close()
    assert not optimizer._optimizer_step_post_hooks
    AmnesiacLog(model, optimizer, tmp_path, sensitive={3}, resume=True).close()
    # the size is known only now
    with AmnesiacLog(model, optimizer, tmp_path, sensitive={3}, samples=240, resume=True) as log:
        log.batch([3])
        images, labels = blobs().tensors
        functional.cross_entropy(model(images[:4]), labels[:4]).backward()
        optimizer.step()
    assert len(WrittenLog(tmp_path).steps) == 2
    assert WrittenLog(tmp_path).samples == 240
    AmnesiacLog(model, optimizer, tmp_path, sensitive={3}, resume=True).close()
    assert WrittenLog(tmp_path).samples == 240
    with pytest.raises(DataError, match="another one"):
        AmnesiacLog(model, optimizer, tmp_path, sensitive={3}, samples=100, resume=True)


def test_wrappers_do_not_show_in_the_names(tmp_path: Path) -> None:
    model = toy("cnn").model
    wrapped = nn.ModuleDict({"module": model})
    AmnesiacLog(wrapped, torch.optim.SGD(model.parameters(), 0.1), tmp_path).close()
    assert set(WrittenLog(tmp_path).shapes) == set(model.state_dict())


@pytest.mark.parametrize(("samples", "drawn", "tracked"), [(7, 3, 2), (6, 2, 1), (5, 4, 3)])
def test_the_chance_of_a_hit_is_that_of_all_draws(samples: int, drawn: int, tracked: int) -> None:
    draws = list(combinations(range(samples), drawn))
    hits = sum(any(position < tracked for position in draw) for draw in draws)
    assert hit_chance(samples, drawn, tracked) == pytest.approx(hits / len(draws))


def test_the_storage_is_said_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy("cnn").model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with AmnesiacLog(model, optimizer, tmp_path, sensitive={3}) as log, caplog.at_level("INFO"):
        storage = log.expect(samples=240, batch_size=32, epochs=10)
        assert "GiB: 10 logged steps" in caplog.text
        # one sample is in exactly one batch an epoch
        assert storage.steps == pytest.approx(10)
        floats = sum(p.numel() for p in model.parameters()) + 2 * (8 + 16)
        assert storage.step_bytes == 4 * floats + 2 * 8
        assert storage.total_bytes == pytest.approx(storage.step_bytes * 10)
        with pytest.raises(DataError, match="GiB free"):
            log.expect(samples=10**12, batch_size=1, epochs=10**6, tracked=10**11)


@pytest.mark.parametrize("spoil", ["nothing", "header", "step"])
def test_what_is_no_log_is_refused(tmp_path: Path, spoil: str) -> None:
    if spoil != "nothing":
        train(toy("cnn").model, tmp_path, sensitive={0})
    if spoil == "header":
        (tmp_path / "log.json").write_text("{")
    if spoil == "step":
        (tmp_path / "step-000000000.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(DataError, match="AmnesiacLog wrote"):
        WrittenLog(tmp_path)


def test_numbered_adds_the_position() -> None:
    images, labels = blobs().tensors
    rows = next(iter(DataLoader(Numbered(TensorDataset(images, labels)), batch_size=4)))
    assert rows[2].tolist() == [0, 1, 2, 3]
    assert len(Numbered(TensorDataset(images, labels))) == 240
    named = Numbered([{"x": 1.0}, {"x": 2.0}], key="row")  # type: ignore[arg-type]
    assert named[1] == {"x": 2.0, "row": 1}


def in_one_of_two_processes(rank: int, folder: str) -> None:
    """Train three steps of two samples a process; only the second one ever holds a tracked one."""
    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    model = toy("cnn").model
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    images, labels = blobs().tensors
    with AmnesiacLog(wrapped, optimizer, Path(folder) / "log", sensitive={7}) as log:
        for step in range(3):
            rows = torch.arange(2) + 2 * rank + 4 * step
            log.batch(rows)
            optimizer.zero_grad()
            functional.cross_entropy(wrapped(images[rows]), labels[rows]).backward()
            before = state(model)
            optimizer.step()
            if step == 1 and rank == 0:
                moved = {name: value - before[name] for name, value in state(model).items()}
                torch.save(moved, Path(folder) / "moved.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_share_one_log(tmp_path: Path) -> None:
    spawn(in_one_of_two_processes, (str(tmp_path),), nprocs=2)
    log = WrittenLog(tmp_path / "log")
    assert [(step.file.stem, set(step.positions)) for step in log.steps] == [
        ("step-000000001", {7})
    ]
    moved = torch.load(tmp_path / "moved.pt", weights_only=True)
    total = log.total(log.steps)
    for name in ("fc.weight", "body.0.weight"):
        torch.testing.assert_close(total[name].float(), moved[name])


class Pictures(torch.utils.data.Dataset[dict[str, object]]):
    """Blobs as transformers reads them."""

    def __init__(self) -> None:
        self.images, self.labels = blobs().tensors

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, object]:
        row = index * 5  # all four classes
        return {"pixel_values": self.images[row], "labels": int(self.labels[row])}


class Classifier(nn.Module):
    """A toy whose forward is that of a transformers model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(toy("cnn").model)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the trainer, none of ours
def test_the_callback_logs_a_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import Trainer, TrainingArguments

    from forgetkit.trainer_log import trainer_callback

    def arguments() -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=8, num_train_epochs=2,
            gradient_accumulation_steps=2, remove_unused_columns=False, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
        )  # fmt: skip

    def trained(folder: Path | None) -> Classifier:
        model = Classifier()
        callbacks = [] if folder is None else [trainer_callback(folder, sensitive={2, 40})]
        data = Pictures() if folder is None else Numbered(Pictures())
        trainer = Trainer(model, arguments(), train_dataset=data, callbacks=callbacks)
        trainer.train()
        return model

    with caplog.at_level(logging.WARNING):
        logged = trained(tmp_path / "log")
    assert "the training log will take" in caplog.text
    assert not logged._forward_pre_hooks
    plain = trained(None)
    for name, value in state(plain).items():
        assert value.equal(state(logged)[name]), name
    steps = WrittenLog(tmp_path / "log").steps
    assert sorted(p for step in steps for p in step.positions) == [2, 2, 40, 40]
    header = json.loads((tmp_path / "log" / "log.json").read_text())
    assert header["tracked"] == [2, 40]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the trainer, none of ours
def test_a_trainer_that_was_refused_can_be_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import Trainer, TrainingArguments

    from forgetkit.trainer_log import trainer_callback

    model = Classifier()

    def train_on(data: Dataset[Any], folder: Path) -> None:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=7, num_train_epochs=1,
            remove_unused_columns=False, report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, seed=0,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(folder)]).train()

    with pytest.raises(DataError, match="wrap the training set in Numbered"):
        train_on(Pictures(), tmp_path / "refused")
    assert not model._forward_pre_hooks
    with caplog.at_level(logging.WARNING):
        train_on(Numbered(Pictures()), tmp_path / "log")
    steps = -(-len(Pictures()) // 7)
    assert len(WrittenLog(tmp_path / "log").steps) == steps
    assert f"{steps} logged steps" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the trainer, none of ours
def test_a_trainer_that_resumes_leaves_no_steps_that_its_model_never_kept(tmp_path: Path) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from forgetkit.trainer_log import trainer_callback

    class Breaks(TrainerCallback):
        def on_step_end(self, *args: Any, **_: Any) -> None:  # noqa: ANN401  as Trainer calls it
            if args[1].global_step == 5:
                raise KeyboardInterrupt

    def trainer(*callbacks: TrainerCallback) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=8, num_train_epochs=2,
            remove_unused_columns=False, report_to=[], save_strategy="steps", save_steps=3,
            use_cpu=True, disable_tqdm=True, seed=0,
        )  # fmt: skip
        data = Numbered(Pictures())
        return Trainer(Classifier(), arguments, train_dataset=data, callbacks=list(callbacks))

    with pytest.raises(KeyboardInterrupt):
        trainer(trainer_callback(tmp_path / "log"), Breaks()).train()
    again = trainer(trainer_callback(tmp_path / "log", resume=True))
    again.train(resume_from_checkpoint=True)
    log = WrittenLog(tmp_path / "log")
    assert [step.file.stem for step in log.steps] == [f"step-{n:09d}" for n in range(12)]
    assert len(list((tmp_path / "log").glob("*.aside"))) == 2
    assert again.model is not None
    before, after = state(Classifier()), state(again.model)
    for name, change in log.total(log.steps).items():
        moved = after[name].double() - before[name].double()
        torch.testing.assert_close(change, moved, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the trainer, none of ours
def test_a_trainer_that_ends_with_its_best_model_leaves_the_steps_of_that_one(
    tmp_path: Path,
) -> None:
    from transformers import Trainer, TrainingArguments

    from forgetkit.trainer_log import trainer_callback

    class Earlier(Trainer):
        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # noqa: ANN401  as it declares
            found = {"eval_loss": abs(self.state.global_step - 4.0)}
            self.log(found)
            return found

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=8, num_train_epochs=2,
        remove_unused_columns=False, report_to=[], save_strategy="steps", save_steps=2,
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, use_cpu=True,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    data, model = Numbered(Pictures()), Classifier()
    before = copy.deepcopy(state(model))
    callbacks = [trainer_callback(tmp_path / "log")]
    Earlier(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks).train()
    log = WrittenLog(tmp_path / "log")
    assert len(log.steps) == 4
    assert len(list((tmp_path / "log").glob("*.aside"))) == 8
    after = state(model)
    for name, change in log.total(log.steps).items():
        moved = after[name].double() - before[name].double()
        torch.testing.assert_close(change, moved, atol=1e-6, rtol=0)
    assert log.left == weights_digest(model)
