from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from forgetkit import BadHyperparameter, DataError, Guard, Result, Statistics, forget
from forgetkit.api import Request
from forgetkit.data.loaders import Loader
from forgetkit.engine import execution
from forgetkit.engine.clock import Clock
from forgetkit.engine.guard import BestState, Reading
from forgetkit.engine.place import Place
from forgetkit.engine.resuming import Progress, Saved
from forgetkit.testing import toy
from forgetkit.testing.interrupting import watched_saves
from forgetkit.testing.trace import changed, weights


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws its augmentation anew with each read."""

    def __init__(self) -> None:
        self.images, self.targets = toy("cnn").train.tensors

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        image = self.images[at]
        noise = torch.randn_like(image) + random.random() + np.random.rand()  # noqa: NPY002, S311
        return image + 0.1 * noise, int(self.targets[at])


class OwnDraws(Noisy):
    """Draws from a generator of its own."""

    draws = torch.Generator().manual_seed(3)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        image = self.images[at]
        noise = torch.randn(image.shape, generator=self.draws)
        return image + 0.1 * noise, int(self.targets[at])


Recipe = Mapping[str, object]


def asked_of(model: nn.Module, recipe: Recipe) -> Request:
    settings = dict(recipe)
    method = str(settings.pop("method", "finetune"))
    return forget(model).classes([3]).using(method, **settings).on("cpu")


def in_parts(
    folder: Path, model: nn.Module, loader: Loader, stop: int, recipe: Recipe,
    guard: Guard | None = None,
) -> Result:  # fmt: skip
    asked = asked_of(model, recipe).resumable(folder)
    with watched_saves(until=stop), pytest.raises(KeyboardInterrupt):
        asked.run(loader, guard=guard)
    return asked.run(loader, guard=guard)


@pytest.mark.parametrize(
    ("recipe", "guard"),
    [
        ({"optimizer": "adam", "schedule": "cosine", "mask": 0.5, "lr": 0.01}, None),
        ({"momentum": 0.9, "weight_decay": 0.01, "max_norm": 0.01}, None),
        ({"bn": "train", "lr": 0.05}, None),
        ({"lr": 0.5}, Guard(budget=0.02)),
    ],
    ids=["adam-cosine-mask", "momentum-clipped", "bn", "guard"],
)
@pytest.mark.parametrize("kind", ["cnn", pytest.param("vit", marks=pytest.mark.slow)])
def test_two_parts_are_bit_for_bit_one(
    tmp_path: Path, kind: str, recipe: Recipe, guard: Guard | None
) -> None:
    recipe = {"epochs": 4, **recipe}
    whole, parted = toy(kind), toy(kind)
    one = asked_of(whole.model, recipe).run(whole.loader(), guard=guard)
    two = in_parts(tmp_path, parted.model, parted.loader(), 3, recipe, guard)
    assert not changed(weights(whole.model), weights(parted.model))
    assert two.stopped_because == one.stopped_because
    assert [note for note in two.notes if "went on after epoch 3" not in note] == one.notes
    assert len(two.history) == len(one.history) == 4


def test_what_the_guard_kept_from_before_the_interruption_is_kept(tmp_path: Path) -> None:
    recipe = {"method": "scrub", "epochs": 4, "lr": 0.1, "batch_size": 64}
    whole, parted = toy("cnn"), toy("cnn")
    one = asked_of(whole.model, recipe).run(whole.loader(), guard=Guard(budget=1.0))
    assert "the guard keeps the better weights after epoch 1 of 4" in one.stopped_because
    two = in_parts(tmp_path, parted.model, parted.loader(), 2, recipe, Guard(budget=1.0))
    assert two.stopped_because == one.stopped_because
    assert not changed(weights(whole.model), weights(parted.model))


def test_random_augmentation_goes_on_with_its_draws(tmp_path: Path) -> None:
    whole, parted = toy("cnn"), toy("cnn")
    asked_of(whole.model, {"epochs": 3}).run(DataLoader(Noisy(), batch_size=32), guard=None)
    in_parts(tmp_path, parted.model, DataLoader(Noisy(), batch_size=32), 1, {"epochs": 3})
    assert not changed(weights(whole.model), weights(parted.model))


def test_measuring_draws_no_augmentation_that_training_would_get(tmp_path: Path) -> None:
    """SCRUB+R asks for accuracies before the first step of an epoch."""
    recipe = {"method": "scrub_r", "epochs": 3, "max_epochs": 3, "lr": 0.01}
    held_out = toy("cnn").test
    whole, parted = toy("cnn"), toy("cnn")

    def asked(model: nn.Module) -> Request:
        settings = {name: value for name, value in recipe.items() if name != "method"}
        start = forget(model).instances(range(40)).using("scrub_r", **settings).on("cpu")
        return start.validate(DataLoader(held_out, batch_size=64))

    one = asked(whole.model).run(DataLoader(Noisy(), batch_size=32), guard=None)
    request = asked(parted.model).resumable(tmp_path)
    with watched_saves(until=1), pytest.raises(KeyboardInterrupt):
        request.run(DataLoader(Noisy(), batch_size=32), guard=None)
    two = request.run(DataLoader(Noisy(), batch_size=32), guard=None)
    assert not changed(weights(whole.model), weights(parted.model))
    assert one.stopped_because == two.stopped_because


class WithBuffers(nn.Module):
    """Has an expanded buffer, a complex one and a sparse one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = toy("cnn").model
        self.ids: Tensor
        self.phases: Tensor
        self.register_buffer("ids", torch.arange(4.0).expand(3, 4))
        self.register_buffer("phases", torch.full((3,), 1 + 2j, dtype=torch.complex128))
        self.register_buffer("rare", torch.eye(3).to_sparse(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.phases.mul_(1.5)
        logits: Tensor = self.body(images)
        return logits


def test_buffers_of_any_kind_go_on(tmp_path: Path) -> None:
    whole, parted = WithBuffers(), WithBuffers()
    recipe = {"epochs": 3}
    asked_of(whole, recipe).resumable(tmp_path).run(toy("cnn").loader(), guard=None)
    in_parts(tmp_path, parted, toy("cnn").loader(), 2, recipe)
    assert parted.ids.is_set_to(parted.ids)
    assert not changed(weights(whole), weights(parted))
    assert not whole.phases.equal(WithBuffers().phases)


@pytest.mark.slow
def test_half_precision_goes_on_from_the_unrounded_weights(tmp_path: Path) -> None:
    recipe = {"method": "neggrad_plus", "epochs": 3}
    whole, parted = toy("vit"), toy("vit")
    asked_of(whole.model.to(torch.bfloat16), recipe).run(whole.loader(), guard=None)
    in_parts(tmp_path, parted.model.to(torch.bfloat16), parted.loader(), 2, recipe)
    assert not changed(weights(whole.model), weights(parted.model))


def test_what_the_guard_keeps_comes_back_whole() -> None:
    tensors = {"weight": torch.zeros(2)}
    start, better = Reading(1.0, 0.1, 0.9), Reading(0.4, 2.0, 0.8)
    kept = BestState(tensors, start, target=0.0, budget=0.2)
    kept.aim(0.5)
    tensors["weight"].fill_(3.0)
    kept.offer(better)
    kept.offer(start)
    other = BestState(tensors, start, target=0.0, budget=0.2)
    other.load(kept.tensors(), json.loads(json.dumps(kept.record())))
    tensors["weight"].fill_(9.0)
    assert other.restore() == "the guard keeps the better weights after epoch 1 of 2"
    assert tensors["weight"].tolist() == [3.0, 3.0]
    assert other.reading == better
    other.offer(Reading(0.5, 2.0, 0.85))  # as forgotten as the aim asks, and keeps more
    assert other.restore() is None


def test_going_on_writes_the_coming_moments_alone(tmp_path: Path) -> None:
    some = toy("cnn")
    asked = asked_of(some.model, {"epochs": 4}).resumable(tmp_path)
    with watched_saves(until=2) as moments, pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    assert moments == [0, 1, 2]
    with watched_saves(until=3) as moments, pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    assert moments == [3]
    (file,) = tmp_path.iterdir()
    assert file.stem.endswith("00003")


def test_a_target_that_setup_has_set_is_kept(tmp_path: Path) -> None:
    recipe = {"method": "su", "epochs": 6, "lr": 0.02, "batch_size": 16}

    def asked(model: nn.Module) -> Request:
        settings = {name: value for name, value in recipe.items() if name != "method"}
        start = forget(model).instances(range(40)).using("su", reference=0.9, **settings)
        return start.on("cpu")

    whole, parted = toy("cnn"), toy("cnn")
    one = asked(whole.model).run(whole.loader(), guard=None)
    assert "target of 90.00 %" in one.stopped_because
    request = asked(parted.model).resumable(tmp_path)
    with watched_saves(until=0), pytest.raises(KeyboardInterrupt):
        request.run(parted.loader(), guard=None)
    assert request.run(parted.loader(), guard=None).stopped_because == one.stopped_because


def test_untrained_weights_that_setup_used_count_as_used(tmp_path: Path) -> None:
    some = toy("cnn")
    request = asked_of(some.model, {"method": "bad_teaching", "epochs": 1})
    request = request.fresh(toy("cnn").model).resumable(tmp_path)
    with watched_saves(until=0), pytest.raises(KeyboardInterrupt):
        request.run(some.loader(), guard=None)
    result = request.run(some.loader(), guard=None)
    assert not began_anew(result)
    assert not any("was not used" in note for note in result.notes)


def began_anew(result: Result) -> bool:
    return not any("went on after epoch" in note for note in result.notes)


def untrained() -> nn.Module:
    return toy("cnn").model


def first_of(output: object) -> Tensor:
    assert isinstance(output, Tensor)
    return output


QUICK = ("seed", "setting", "model", "frozen")
OTHERS = (
    "classes", "accumulate", "fresh", "fresh function", "images", "guard", "batch size", "output",
    "buffer",
)  # fmt: skip


@pytest.mark.parametrize(
    "other", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)]
)
def test_another_request_in_the_folder_begins_anew(tmp_path: Path, other: str) -> None:
    some = toy("cnn")
    asked = forget(some.model).classes([3]).using("finetune", epochs=2).resumable(tmp_path)
    with watched_saves(until=1), pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    (kept,) = tmp_path.iterdir()
    changed_request = asked
    loader, guard = some.loader(), None
    if other == "seed":
        changed_request = asked.seed(1)
    elif other == "setting":
        changed_request = asked.using("finetune", epochs=2, lr=0.02)
    elif other == "classes":
        request = forget(some.model).classes([2]).using("finetune", epochs=2)
        changed_request = request.resumable(tmp_path)
    elif other == "accumulate":
        changed_request = asked.on(accumulate=2)
    elif other == "fresh":
        changed_request = asked.fresh(dict(toy("cnn").model.state_dict()))
    elif other == "fresh function":
        changed_request = asked.fresh(untrained)
    elif other == "output":
        changed_request = asked.head(output=first_of)
    elif other == "batch size":
        loader = some.loader(batch_size=17)
    elif other == "frozen":
        next(some.model.parameters()).requires_grad_(False)
    elif other == "buffer":
        some.model.register_buffer("seen", torch.ones(2), persistent=False)
    elif other == "model":
        with torch.no_grad():
            next(some.model.parameters()).add_(1e-3)
    elif other == "images":
        images, labels = some.train.tensors
        some.train.tensors = (images + 1e-3, labels)
        loader = some.loader()
    else:
        guard = Guard(budget=0.5)
    result = changed_request.run(loader, guard=guard)
    assert began_anew(result)
    assert any("holds the progress of 1 other request" in note for note in result.notes)
    assert list(tmp_path.iterdir()) == [kept]
    if other not in ("model", "images"):
        return
    fresh = toy("cnn")
    again = forget(fresh.model).classes([3]).using("finetune", epochs=2).resumable(tmp_path)
    assert not began_anew(again.run(fresh.loader(), guard=None))


def test_the_order_of_classes_and_of_new_labels_does_not_matter(tmp_path: Path) -> None:
    some = toy("cnn")
    for one, same in (
        (forget(some.model).classes([3, 1]), forget(some.model).classes([1, 3])),
        (forget(some.model).relabel({7: 1, 3: 2}), forget(some.model).relabel({3: 2, 7: 1})),
    ):
        method = "finetune" if one.goal and one.goal.kind == "classes" else "correct"
        with watched_saves(until=0), pytest.raises(KeyboardInterrupt):
            one.using(method, epochs=2).resumable(tmp_path).run(some.loader(), guard=None)
        again = same.using(method, epochs=2).resumable(tmp_path)
        result = again.run(some.loader(), guard=None)
        assert not began_anew(result)
        result.undo()


def test_a_file_that_a_setting_names_counts_with_what_it_holds(tmp_path: Path) -> None:
    some, folder = toy("cnn"), tmp_path / "progress"
    file = Statistics.collect(some.model, some.loader()).save(tmp_path / "statistics")
    asked = asked_of(some.model, {"method": "pgu", "statistics": str(file)}).resumable(folder)
    with watched_saves(until=0), pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    half = DataLoader(torch.utils.data.Subset(some.train, range(0, 200, 2)), batch_size=32)
    Statistics.collect(some.model, half).save(file)
    assert began_anew(asked.run(some.loader(), guard=None))


def test_augmentation_of_retained_data_does_not_hide_the_progress(tmp_path: Path) -> None:
    some = toy("cnn")
    few = DataLoader(torch.utils.data.Subset(some.train, range(40)), batch_size=16)
    request = forget(some.model).instances().using("finetune", epochs=2).resumable(tmp_path)
    asked = request.retain(DataLoader(OwnDraws(), batch_size=32))
    with watched_saves(until=1), pytest.raises(KeyboardInterrupt):
        asked.run(few, guard=None)
    assert not began_anew(asked.run(few, guard=None))


def test_every_says_how_often_it_is_written_and_one_file_is_kept(tmp_path: Path) -> None:
    some = toy("cnn")
    asked = forget(some.model).classes([3]).using("finetune", epochs=5)
    with watched_saves() as moments:
        asked.resumable(tmp_path, every=2).run(some.loader(), guard=None)
    assert moments == [0, 2, 4]
    again = toy("cnn")
    asked = forget(again.model).classes([3]).using("finetune", epochs=5)
    with watched_saves(until=3), pytest.raises(KeyboardInterrupt):
        asked.resumable(tmp_path / "new" / "folder").run(again.loader(), guard=None)
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.name.endswith("-1of1-00003.safetensors")


def test_a_closed_form_edit_says_that_it_keeps_nothing(tmp_path: Path) -> None:
    some = toy("cnn")
    asked = forget(some.model).classes([3]).using("linear_filtration").resumable(tmp_path)
    assert any("no progress to keep" in note for note in asked.run(some.loader()).notes)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named_and_nothing_changes(tmp_path: Path) -> None:
    some = toy("cnn")
    before = weights(some.model)
    asked = forget(some.model).classes([3]).using("finetune", epochs=2).resumable(tmp_path)
    with watched_saves(until=1), pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"expected the progress of a run.*delete the file"):
        asked.run(some.loader(), guard=None)
    assert not changed(before, weights(some.model))


def test_a_record_without_all_of_it_is_damaged(tmp_path: Path) -> None:
    some = toy("cnn")
    before = weights(some.model)
    asked = asked_of(some.model, {"epochs": 2}).resumable(tmp_path)
    with watched_saves(until=1), pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    (file,) = tmp_path.iterdir()
    rewritten(file, lambda header: header["record"].pop("step"))
    with pytest.raises(DataError, match=r"a record without all of it \(KeyError: 'step'\)"):
        asked.run(some.loader(), guard=None)
    assert not changed(before, weights(some.model))


def test_flipped_bits_are_seen(tmp_path: Path) -> None:
    files = Progress(tmp_path, "key", Place(torch.device("cpu")), most=3)
    files.save(moment(1))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match="its tensors are not those that were written"):
        files.found()


def test_a_write_that_fails_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        seen.append(path)
        if len(seen) == 3:
            raise SafetensorError("No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("forgetkit.engine.resuming.save_file", full)
    some = toy("cnn")
    result = asked_of(some.model, {"epochs": 4}).resumable(tmp_path).run(some.loader(), guard=None)
    told = [note for note in result.notes if "could not be written" in note]
    assert len(told) == 1
    assert "after epoch 2 could not be written" in told[0]
    assert "No space left on device" in told[0]
    assert len(seen) == 5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    some, folder = toy("cnn"), tmp_path / "progress"
    asked = asked_of(some.model, {"epochs": 3}).resumable(folder)
    with watched_saves(until=1), pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    shutil.rmtree(folder)
    assert began_anew(asked.run(some.loader(), guard=None))
    assert folder.is_dir()


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    some = toy("cnn")
    asked = asked_of(some.model, {"epochs": 2}).resumable(tmp_path)
    with watched_saves(until=1), pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    (file,) = tmp_path.iterdir()
    staging = tmp_path / f".{file.name.removesuffix('00001.safetensors')}partial"
    staging.mkdir()
    (staging / ".tmpXXXX").write_text("half of it")
    shutil.copy(file, file.with_name(f"{file.stem} (copy).safetensors"))
    assert not began_anew(asked.run(some.loader(), guard=None))
    assert [path.name for path in tmp_path.iterdir()] == [f"{file.stem} (copy).safetensors"]


@pytest.mark.parametrize("last", [(execution, "end_workers"), (Progress, "clear")])
def test_progress_is_there_until_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: tuple[object, str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    some = toy("cnn")
    before = weights(some.model)
    asked = asked_of(some.model, {"epochs": 2}).resumable(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(*last, interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked.run(some.loader(), guard=None)
    assert not changed(before, weights(some.model))
    assert "went on after epoch 2" in " ".join(asked.run(some.loader(), guard=None).notes)


def test_progress_that_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_: Progress) -> None:
        raise OSError("file in use")

    monkeypatch.setattr(Progress, "clear", busy)
    some = toy("cnn")
    result = asked_of(some.model, {"epochs": 1}).resumable(tmp_path).run(some.loader(), guard=None)
    assert any("could not be removed (OSError: file in use)" in note for note in result.notes)
    assert result.history


def test_what_cannot_be_a_folder_is_refused_before_anything_changes(tmp_path: Path) -> None:
    some = toy("cnn")
    before = weights(some.model)
    asked = forget(some.model).classes([3]).using("finetune")
    with pytest.raises(BadHyperparameter, match="expected the path of a folder"):
        asked.resumable(3)  # type: ignore[arg-type]
    for every in (0, True, 1.5):
        with pytest.raises(BadHyperparameter, match="expected a positive integer"):
            asked.resumable(tmp_path, every=every)  # type: ignore[arg-type]
    taken = tmp_path / "file"
    taken.write_text("occupied")
    with pytest.raises(BadHyperparameter, match="expected a folder that can be written"):
        asked.resumable(taken).run(some.loader())
    assert not changed(before, weights(some.model))


class Beside(Place):
    """A process beside another one that has files of some moments."""

    others: tuple[int, ...] = ()

    def total(self, value: Tensor) -> Tensor:
        found = value.clone()
        found[list(self.others)] += 1
        return found


def rewritten(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a file."""
    with safe_open(file, framework="pt") as stored:
        header = json.loads((stored.metadata() or {})["header"])
    change(header)
    metadata = {"format": "forgetkit.progress/1", "header": json.dumps(header)}
    save_file(load_file(file), file, metadata)


def moment(epochs: int) -> Saved:
    return Saved(epochs, {"state/a": torch.full((2,), float(epochs))}, {"step": epochs})


def test_processes_go_on_from_the_latest_moment_that_all_have(tmp_path: Path) -> None:
    place = Beside(torch.device("cpu"), rank=1, world=2)
    files = Progress(tmp_path, "key", place, most=9)
    for epochs in range(5):
        files.save(moment(epochs))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "key-2of2-00003.safetensors", "key-2of2-00004.safetensors",
    ]  # fmt: skip
    for others, latest in (((3, 4), 4), ((2, 3), 3), ((4, 5), 4)):
        Beside.others = others
        found = files.found()
        assert found is not None
        assert (found.epochs, found.record) == (latest, {"step": latest})
        assert found.tensors["state/a"].tolist() == [latest, latest]
    Beside.others = (1, 2)
    assert files.found() is None
    files.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_second_interruption_of_two_processes_loses_nothing(tmp_path: Path) -> None:
    """The first process was a moment ahead, went on from the common one and writes again."""
    files = Progress(tmp_path, "key", Beside(torch.device("cpu"), world=2), most=9)
    for epochs in (3, 4, 4):
        files.save(moment(epochs))
    Beside.others = (2, 3)
    found = files.found()
    assert found is not None
    assert found.epochs == 3


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    files = Progress(tmp_path, "key", Place(torch.device("cpu")), most=3)
    header = json.dumps({"epochs": 1, "names": [], "record": {}})
    save_file({}, tmp_path / "key-1of1-00001.safetensors", {"format": "other", "header": header})
    with pytest.raises(DataError, match="its format is 'other'"):
        files.found()


def test_seconds_of_both_parts_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr("forgetkit.engine.clock.time.perf_counter", lambda: next(now))
    clock = Clock()
    with clock("train"):  # starts at 0
        with clock("check"):  # 1 to 3
            pass
        assert clock.so_far() == {"check": 2.0, "train": 4.0}  # at 6
        with clock("check"):  # from 10
            assert clock.so_far() == {"check": 7.0, "train": 8.0}  # at 15
            monkeypatch.undo()
    earlier = Clock()
    earlier.add({"train": 4.0})
    earlier.add({"train": 1.5, "check": 2.0})
    assert earlier.seconds == {"train": 5.5, "check": 2.0}


def test_the_result_counts_the_seconds_of_both_parts(tmp_path: Path) -> None:
    some = toy("cnn")
    asked = forget(some.model).classes([3]).using("finetune", epochs=3).resumable(tmp_path)
    with watched_saves(until=2), pytest.raises(KeyboardInterrupt):
        asked.run(some.loader(), guard=None)
    (file,) = tmp_path.iterdir()
    spent: list[float] = []

    def made_longer(header: dict[str, Any]) -> None:
        spent.append(header["record"]["seconds"]["train"])
        header["record"]["seconds"] = {"train": 1000.0}

    rewritten(file, made_longer)
    assert spent[0] > 0.0
    assert asked.run(some.loader(), guard=None).seconds["train"] > 1000.0
