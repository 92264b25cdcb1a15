"""Weights that are not what a run left are not passed off as its outcome."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from forgetkit import Guard, forget
from forgetkit.demo import course
from forgetkit.demo.contenders import CONTENDERS
from forgetkit.errors import (
    PatchMismatch,
)
from forgetkit.result import Result
from forgetkit.testing import toy
from forgetkit.testing.toys import Toy


def forgotten(some: Toy, label: int = 3) -> Result:
    return forget(some.model).classes([label]).using("lau").on("cpu").run(some.loader(), guard=None)


def test_weights_of_another_state_are_not_saved_under_a_runs_card(tmp_path: Path) -> None:
    some = toy("cnn")
    first = forgotten(some)
    second = forgotten(some, 2)
    with pytest.raises(PatchMismatch, match=r"save\(\): .* changed since"):
        first.save(tmp_path / "first")
    assert second.save(tmp_path / "second")
    second.undo()
    with pytest.raises(PatchMismatch, match=r"save\(\): .* undone"):
        second.save(tmp_path / "undone")
    with pytest.raises(PatchMismatch, match=r"audit\(\): .* undone"):
        second.audit(some.loader())
    with pytest.raises(PatchMismatch, match="undone"):
        second.push_to_hub("someone/something")
    assert [folder.name for folder in tmp_path.iterdir()] == ["second"]


def test_a_run_that_was_rolled_back_is_not_saved_and_its_card_says_so(tmp_path: Path) -> None:
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("neggrad", lr=0.5, epochs=2).on("cpu")
    result = request.run(some.loader(), guard=Guard(budget=0.0))
    assert result.rolled_back
    with pytest.raises(PatchMismatch, match="rolled back"):
        result.save(tmp_path / "out")
    assert "run that was rolled back" in result.card()
    assert "was edited" not in result.card()
    assert result.stopped_because in result.card()


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.inner(images)
        return logits


def test_a_look_at_the_model_does_not_keep_it_from_being_saved(tmp_path: Path) -> None:
    some = toy("cnn")
    model = Counting(some.model)
    result = forget(model).classes([3]).using("lau").on("cpu").run(some.loader(), guard=None)
    model.eval()(some.train.tensors[0][:2])
    assert result.save(tmp_path / "out")


def test_a_run_that_changed_nothing_does_not_lend_its_card(tmp_path: Path) -> None:
    some = toy("vit")
    request = forget(some.model).classes([3]).using("finetune", lr=0.0, epochs=1).on("cpu")
    idle = request.run(some.loader(), guard=None)
    assert idle.save(tmp_path / "same")
    forgotten(some)
    with pytest.raises(PatchMismatch, match="changed since"):
        idle.save(tmp_path / "other")


@pytest.mark.slow
def test_the_demo_goes_on_when_a_run_is_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(CONTENDERS[0].recipes["digits"], epochs=1)
    first = replace(CONTENDERS[0], recipes={"digits": recipe})
    monkeypatch.setattr(course, "CONTENDERS", (first,))
    why = "guard: as a test wants it"
    monkeypatch.setattr("forgetkit.engine.execution.verdict", lambda *_: why)
    report = course.run_demo(out=tmp_path, say=lambda _: None)
    assert [row.state for row in report.rows][1] == "rolled back (lau)"
    assert len(report.rows) == 4
    assert (tmp_path / first.slug / "original").exists()
    assert not (tmp_path / first.slug / "forgotten").exists()
