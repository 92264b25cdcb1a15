from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from forgetkit import UnlearningFailed, forget
from forgetkit.engine import execution
from forgetkit.engine.finite import TOGETHER, Finite
from forgetkit.engine.place import Place
from forgetkit.testing import toy
from forgetkit.testing.trace import changed, weights

SCRIPT = Path(__file__).with_name("unlearn_script.py")
ROOT = Path(__file__).parents[2]


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
"""`accelerate launch --cpu --num_processes 2` starts a second process only through MPI (seen with
1.15); torchrun is what it starts itself everywhere else."""


def run(command: list[str], method: str, file: Path, *more: str, fails: bool = False) -> str:
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}",
    }
    done = subprocess.run(
        [*command, str(SCRIPT), method, str(file), *more],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lau", "finetune", "neggrad"])
def test_two_processes_give_the_weights_of_one(method: str, tmp_path: Path) -> None:
    run([sys.executable], method, tmp_path / "one.safetensors")
    output = run(LAUNCH, method, tmp_path / "two.safetensors")
    assert "1 of 2" in output
    one, two = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
def test_two_processes_go_on_together(tmp_path: Path) -> None:
    folder = tmp_path / "progress"
    run(LAUNCH, "finetune", tmp_path / "whole.safetensors")
    run(LAUNCH, "finetune", tmp_path / "none", str(folder), "1", fails=True)
    assert sorted(file.name[16:] for file in folder.iterdir()) == [
        f"-{rank}of2-0000{epochs}.safetensors" for rank in (1, 2) for epochs in (0, 1)
    ]
    output = run(LAUNCH, "finetune", tmp_path / "parts.safetensors", str(folder))
    assert output.count("went on after epoch 1 of an earlier run") == 2
    assert list(folder.iterdir()) == []
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert not changed(whole, parts)


class BesideIdle(Place):
    """The first of two processes, which has the whole of each batch."""

    @property
    def shard(self) -> tuple[int, int]:
        return 0, 1

    def total(self, value: Tensor) -> Tensor:
        return value


def test_losses_of_the_history_are_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for place in (Place(torch.device("cpu")), BesideIdle(torch.device("cpu"), world=2)):
        monkeypatch.setattr(execution, "choose_place", lambda *_, place=place: place)
        some = toy("vit")
        request = forget(some.model).classes([3]).using("neggrad_plus", epochs=1)
        (row,) = request.run(some.loader(), guard=None).history
        losses.append([row["loss"], row["loss_forget"], row["loss_retain"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class BesideTwin(Place):
    """The first of three processes that all do the same."""

    @property
    def shard(self) -> tuple[int, int]:
        return 0, 1

    def total(self, value: Tensor) -> Tensor:
        return value * self.world


class Masking(nn.Module):
    """Has a buffer of the lowest numbers, and an expanded one, that nothing changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = toy("cnn").model
        self.register_buffer("lowest", torch.full((4,), torch.finfo(torch.float32).min))
        self.register_buffer("wide", torch.ones(1).expand(5))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_processes_average_the_buffers_that_changed_and_no_others(
    monkeypatch: pytest.MonkeyPatch, bn: str
) -> None:
    place = BesideTwin(torch.device("cpu"), world=3)
    monkeypatch.setattr(execution, "choose_place", lambda *_: place)
    model = Masking()
    before = weights(model)
    request = forget(model).classes([3]).using("finetune", epochs=1, bn=bn)
    request.run(toy("cnn").loader(), guard=None)
    names = {name for name, _ in model.named_buffers()}
    moved = names.intersection(changed(before, weights(model)))
    statistics = {name for name in names if name.startswith("body.body")}
    assert moved == (statistics if bn == "train" else set())
    assert all(bool(torch.isfinite(buffer).all()) for buffer in model.buffers())


class BesideBroken(BesideIdle):
    """The first of two processes; the other one breaks where it is asked for the third time."""

    asked: ClassVar[list[bool]] = []

    def anywhere(self, holds: bool) -> bool:
        self.asked.append(holds)
        return len(self.asked) == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (2, "features .* found NaN or infinity in another process"),
        (1, "measuring: .* found NaN or infinity in another process"),
        (0, "lau: expected a finite loss, found none in another process"),
    ],
)
def test_what_breaks_one_process_stops_the_others(
    monkeypatch: pytest.MonkeyPatch, asked: int, message: str
) -> None:
    monkeypatch.setattr(BesideBroken, "asked", [False] * asked)
    place = BesideBroken(torch.device("cpu"), world=2)
    monkeypatch.setattr(execution, "choose_place", lambda *_: place)
    some = toy("cnn")
    before = weights(some.model)
    with pytest.raises(UnlearningFailed, match=message):
        forget(some.model).classes([3]).using("lau").run(some.loader(), guard=None)
    assert not any(place.asked)
    assert not changed(before, weights(some.model))


def test_a_broken_process_goes_on_until_all_can_stop() -> None:
    place = BesideIdle(torch.device("cpu"), world=2)
    finite = Finite("logits: expected numbers", place)
    for number in range(2 * TOGETHER):
        finite.add(number, torch.tensor(torch.nan if number == 3 else 0.0))
    with pytest.raises(UnlearningFailed, match="NaN or infinity in batch 3"):
        finite.check()
