"""What a user gets told: weights that are not a run's, guards that watch nothing, and so on."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typer.testing import CliRunner

from forgetkit import Guard, Patch, Statistics, audit_model, forget
from forgetkit.cli import app
from forgetkit.comparing import compare
from forgetkit.data.split import split
from forgetkit.data.views import Joined
from forgetkit.demo import course
from forgetkit.demo.contenders import CONTENDERS
from forgetkit.errors import (
    BadHyperparameter,
    BadTarget,
    DataError,
    ForgetkitError,
    MissingFile,
    ModelError,
    PatchMismatch,
)
from forgetkit.goal import Instances
from forgetkit.report import load_record
from forgetkit.result import Result
from forgetkit.testing import TOYS, toy
from forgetkit.testing.toys import Toy
from forgetkit.testing.trace import changed, weights


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
    assert "rolled back" in result.card()
    assert result.stopped_because in result.card()


@pytest.mark.parametrize("guard", [0.02, False, 1])
def test_a_guard_is_a_guard(guard: object) -> None:
    some = toy("cnn")
    before = weights(some.model)
    with pytest.raises(BadHyperparameter, match=r"Guard\(budget=0.02\)"):
        forget(some.model).classes([3]).using("lau").run(some.loader(), guard=guard)  # type: ignore[arg-type]
    assert changed(weights(some.model), before) == []


def test_a_run_that_nothing_watches_says_so() -> None:
    for loader, watched in ((toy("cnn").forget_loader(), False), (toy("cnn").loader(), True)):
        result = forget(toy("cnn").model).classes([3]).using("lau").on("cpu").run(loader)
        assert any("not watched" in note for note in result.notes) is not watched


@pytest.mark.parametrize("kind", TOYS)
def test_models_in_double_precision_forget(kind: str) -> None:
    some = toy(kind)
    some.model.double()
    result = forgotten(some)
    assert result.after["forget"].accuracy == 0.0
    assert all(p.dtype is torch.float64 for p in some.model.parameters())


def test_retrain_leaves_frozen_weights_alone() -> None:
    some = toy("cnn")
    for parameter in some.model.get_submodule("body").parameters():
        parameter.requires_grad = False
    before = weights(some.model)
    frozen = [name for name, p in some.model.named_parameters() if not p.requires_grad]
    request = forget(some.model).classes([3]).using("retrain", epochs=1, lr=0.01).on("cpu")
    result = request.run(some.loader(), guard=None)
    moved = changed(weights(some.model), before)
    assert not set(frozen) & set(moved)
    assert "fc.weight" in moved
    assert any("not drawn anew" in note for note in result.notes)
    assert not any(name.startswith("body") for name in moved)  # running statistics included
    some.model.requires_grad_(requires_grad=False)
    with pytest.raises(ModelError, match="requires_grad"):
        request.run(some.loader(), guard=None)


def test_files_that_are_not_there_are_forgetkits_errors(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for read in (Statistics.load, Patch.load, load_record):
        with pytest.raises(MissingFile, match="missing"):
            read(missing)
    assert issubclass(MissingFile, ForgetkitError)
    some = toy("cnn")
    request = forget(some.model).classes([3]).using("pgu", statistics=str(missing))
    with pytest.raises(MissingFile, match=r"Statistics\.collect"):
        request.run(some.loader(), guard=None)


def test_single_values_where_a_list_is_due() -> None:
    some = toy("cnn")
    with pytest.raises(BadHyperparameter, match=r"metrics=\['accuracy'\]"):
        audit_model(some.model, forget=some.loader(), classes=[3], metrics="accuracy")
    with pytest.raises(BadTarget, match=r"targets=\[3, 5\]"):
        compare(some.model, some.loader(), 3, ["lau"])  # type: ignore[arg-type]


def test_statistics_take_away_what_the_run_forgot_and_nothing_else() -> None:
    some = toy("cnn")
    collected = Statistics.collect(some.model, some.loader())
    request = forget(some.model).classes([3]).using("neggrad", epochs=1).on("cpu")
    result = request.run(some.loader(), guard=None)
    images, labels = some.train.tensors
    few = DataLoader(TensorDataset(images[labels == 3][:7], labels[labels == 3][:7]), batch_size=7)
    with pytest.raises(DataError, match="forgot 60 samples, found 7"):
        collected.without(result, few)
    assert collected.without(result, some.loader()).samples == 180


def test_a_console_script_finds_the_users_own_package(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "forgetkit"
    script.parent.mkdir()
    script.write_text("from forgetkit.cli import app\napp()\n", encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    source = (
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, 5))\n"
    )
    (home / "own_models.py").write_text(source, encoding="utf-8")
    told = [sys.executable, str(script), "inspect", "own_models:build", "--size", "8"]
    done = subprocess.run(told, cwd=home, capture_output=True, text=True, check=False)
    assert "No module named" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_the_command_line_names_its_own_options(tmp_path: Path) -> None:
    told = ["run", "torchvision/resnet18", "--data", str(tmp_path), "--classes", "3"]
    found = CliRunner().invoke(app, [*told, "--using", "lau", "--out", str(tmp_path / "out")])
    assert found.exit_code == 2
    assert "--weights FILE" in found.output
    assert "--download" in found.output
    assert not any(word in found.output for word in ("state_dict", "allow_download", "untrained"))
    weights_alone = tmp_path / "some.pt"
    torch.save({}, weights_alone)
    found = CliRunner().invoke(app, ["inspect", str(weights_alone)])
    assert found.exit_code == 2
    assert f"--weights '{weights_alone}'" in found.output


def test_images_that_the_model_cannot_take() -> None:
    some = toy("cnn")
    images, labels = some.train.tensors
    wrong = {
        "scaled and": (images * 255).byte(),
        "channels": torch.cat([images, images], dim=1),
    }
    for cure, given in wrong.items():
        loader = DataLoader(TensorDataset(given, labels), batch_size=60)
        with pytest.raises(ForgetkitError, match=cure):
            forget(some.model).classes([3]).using("finetune").on("cpu").run(loader)
    with torch.inference_mode():
        made_inside = copy.deepcopy(some.model)
        with pytest.raises(ForgetkitError, match=r"inside torch\.inference_mode"):
            forget(made_inside).classes([3]).using("finetune").on("cpu").run(some.loader())
    with pytest.raises(ModelError, match="pass the model itself"):
        Statistics.collect("resnet18", some.loader())  # type: ignore[arg-type]


class Stubborn(nn.Module):
    """Cannot be reset without being told how."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)


def test_a_reset_that_breaks_leaves_frozen_weights_as_they_were() -> None:
    some = toy("cnn")
    for parameter in some.model.get_submodule("body").parameters():
        parameter.requires_grad = False
    some.model.add_module("last", Stubborn())
    before = weights(some.model)
    with pytest.raises(ForgetkitError, match="std"):
        forget(some.model).classes([3]).using("retrain", epochs=1).on("cpu").run(some.loader())
    assert changed(weights(some.model), before) == []


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


def test_paths_in_messages_are_not_rewritten(tmp_path: Path) -> None:
    for name in ("state_dict.pt", "my_num_classes.safetensors"):
        found = CliRunner().invoke(app, ["inspect", str(tmp_path / name)])
        assert found.exit_code == 2
        assert name in found.output


class Drawn(Dataset[tuple[Tensor, int]]):
    """Writes a random number into every image, as random augmentation would."""

    seen: ClassVar[list[float]] = []

    def __init__(self) -> None:
        self.images, self.labels = toy("cnn").train.tensors

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].clone()
        image[0, 0, 0] = torch.rand(())
        return image, int(self.labels[index])


def test_joined_sets_draw_augmentations_anew_in_every_epoch() -> None:
    parts = split(
        DataLoader(Drawn(), batch_size=8, num_workers=1),
        Instances((0, 1, 2)),
        num_classes=4,
        forget_classes=(),
    )
    assert parts.retain is not None
    draws = []
    for _ in range(2):
        joined = Joined(parts.forget, parts.retain)
        seen = [batch.inputs[:, 0, 0, 0] for batch in joined.batches(8)]  # type: ignore[index]  # tensors
        draws.append(torch.cat(seen))
    assert not torch.equal(*draws)
    assert not torch.equal(draws[0][:3].sort().values, draws[0][3:6].sort().values)


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
