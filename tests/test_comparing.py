"""``compare``: the grid of runs, its folder and its tables."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from forgetkit.api import forget
from forgetkit.comparing import Comparison, RunRecord, compare
from forgetkit.comparing.grid import title_of
from forgetkit.comparing.written import HEADER, write_whole
from forgetkit.data.loaders import Loader
from forgetkit.engine.place import Place
from forgetkit.errors import BadHyperparameter, BadTarget, DataError, UnknownMethod
from forgetkit.goal import Depoison, Instances
from forgetkit.importance_reading import importance_of
from forgetkit.losses import unlearning_score
from forgetkit.method import Method, build
from forgetkit.testing.toys import Toy, toy

QUICK = build("lau", {"epochs": 2, "attack_steps": 2})
STRONG = build("lau", {"attack_steps": 3})


def held_out(problem: Toy) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(problem.test, batch_size=64)


def run_of(title: str, seed: int, error: str = "", **scores: float) -> RunRecord:
    return RunRecord(title, {}, {}, "classes 3", seed, scores, error=error)


def test_scores_are_those_of_a_single_run_and_the_model_stays_as_it_is() -> None:
    problem = toy("cnn")
    before = copy.deepcopy(problem.model.state_dict())
    table = compare(
        problem.model, problem.loader(), [3], [STRONG], [5], test=held_out(problem), device="cpu"
    )
    assert problem.model.training
    after = problem.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    original, run = table.runs
    assert original.title == "original"
    assert original.scores["D_f"] == pytest.approx(100 * problem.accuracy(problem.train, [3]))
    assert original.scores["D_tr"] == pytest.approx(100 * problem.accuracy(problem.test, [0, 1, 2]))
    request = forget(problem.model).classes([3]).using(STRONG).seed(5).on("cpu")
    request.run(problem.loader(), guard=None)
    expected = {
        "D_r": problem.accuracy(problem.train, [0, 1, 2]),
        "D_f": problem.accuracy(problem.train, [3]),
        "D_tr": problem.accuracy(problem.test, [0, 1, 2]),
        "D_tf": problem.accuracy(problem.test, [3]),
    }
    for name, share in expected.items():
        assert run.scores[name] == pytest.approx(100 * share)
    assert run.scores["US"] == pytest.approx(unlearning_score(expected["D_tr"], expected["D_tf"]))
    assert run.scores["D_f"] < original.scores["D_f"]
    assert run.seed == 5
    assert run.method["attack_steps"] == 3


class Counted(Dataset[tuple[Tensor, int]]):
    """Counts the samples that are read; lists its labels only where it is asked to."""

    def __init__(self, data: TensorDataset, *, listed: bool) -> None:
        self.data = data
        self.read = 0
        if listed:
            self.targets = data.tensors[1]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        image, label = self.data[index]
        return image, int(label)


def test_labels_that_are_not_listed_are_read_once_for_all_runs() -> None:
    problem = toy("cnn")
    read = {}
    for listed in (False, True):
        data = Counted(problem.train, listed=listed)
        loader = DataLoader(data, batch_size=64)
        compare(problem.model, loader, [3, 2], [QUICK], 2, validate=loader, device="cpu")
        read[listed] = data.read
    assert 0 < read[False] - read[True] <= len(problem.train)


def test_every_target_method_and_seed_has_its_run_in_the_tables_order() -> None:
    problem = toy("cnn")
    table = compare(problem.model, problem.loader(), [3, [0, 1]], [QUICK], 2, device="cpu")
    title = title_of(QUICK)
    assert title == "lau (epochs=2, attack_steps=2)"
    assert [(run.target, run.title, run.seed) for run in table.runs] == [
        ("classes 3", "original", 0), ("classes 3", title, 0), ("classes 3", title, 1),
        ("classes 0, 1", "original", 0), ("classes 0, 1", title, 0), ("classes 0, 1", title, 1),
    ]  # fmt: skip
    assert {"D_tr", "D_tf", "US"}.isdisjoint(table.runs[1].scores)  # no test data were given


def test_a_second_call_reads_what_the_first_one_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = toy("cnn")
    first = compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")
    assert first.rows()[1].runs == 1
    counted: list[int] = []
    monkeypatch.setattr(
        "forgetkit.api.Request.run", lambda self, *_, **__: counted.append(self.random_seed)
    )
    said: list[str] = []
    again = compare(
        problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu",
        say=said.append,
    )  # fmt: skip
    assert again == first
    assert counted == []
    assert [line.rpartition(": ")[2] for line in said] == ["read", "read"]
    with pytest.raises(AttributeError):  # a further seed does run, with what stands in for run()
        compare(problem.model, problem.loader(), [3], [QUICK], 2, out=tmp_path, device="cpu")
    assert counted == [1]


@pytest.mark.slow
def test_other_settings_data_or_words_are_other_runs(tmp_path: Path) -> None:
    problem = toy("cnn")
    fewer = DataLoader(torch.utils.data.Subset(problem.train, range(100)), 32)
    other = build("lau", {"epochs": 1, "attack_steps": 2})

    def files() -> int:
        return len(list((tmp_path / "runs").glob("*.json")))

    compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")
    assert files() == 2
    compare(problem.model, problem.loader(), [3], [other], 1, out=tmp_path, device="cpu")
    assert files() == 3
    compare(problem.model, fewer, [3], [QUICK], 1, out=tmp_path, device="cpu")
    assert files() == 5
    compare(
        problem.model, fewer, [3], [QUICK], 1, out=tmp_path, device="cpu", setting={"size": "8"}
    )
    assert files() == 7


def how_read(problem: Toy, out: Path, method: Method, validate: Loader | None = None) -> list[str]:
    """Compare one method with the model as it is; return what was said of both runs."""
    said: list[str] = []
    compare(
        problem.model, problem.loader(), [3], [method], 1, out=out, device="cpu",
        say=lambda line: said.append(line.rpartition(": ")[2]), validate=validate,
    )  # fmt: skip
    return said


@pytest.mark.slow
def test_other_validation_labels_are_other_runs(tmp_path: Path) -> None:
    problem = toy("cnn")
    method = build("neggrad", {"epochs": 1})
    images, labels = problem.test.tensors
    other = DataLoader(TensorDataset(images, (labels + 1) % 4), batch_size=64)
    assert "read" not in how_read(problem, tmp_path, method, validate=held_out(problem))
    assert how_read(problem, tmp_path, method, validate=held_out(problem)) == ["read", "read"]
    assert "read" not in how_read(problem, tmp_path, method, validate=other)
    assert "read" not in how_read(problem, tmp_path, method)
    with pytest.raises(DataError, match=r"validate: expected a loader that can be read again"):
        how_read(problem, tmp_path, method, validate=iter(held_out(problem)))


@pytest.mark.slow
def test_a_file_that_changed_makes_another_run(tmp_path: Path) -> None:
    problem, file = toy("cnn"), tmp_path / "importance.safetensors"
    method = build("ssd", {"importance_file": str(file)})
    importance_of(problem.model, problem.loader()).save(file)
    assert "read" not in how_read(problem, tmp_path / "out", method)
    assert how_read(problem, tmp_path / "out", method) == ["read", "read"]
    importance_of(problem.model, problem.forget_loader()).save(file)
    first, second = how_read(problem, tmp_path / "out", method)
    assert first == "read"  # the model as it is reads no file
    assert second != "read"


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    problem = toy("cnn")
    compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")
    before = sorted(tmp_path.rglob("*"))
    with torch.no_grad():
        next(problem.model.parameters()).mul_(1.001)
    with pytest.raises(DataError, match=r"out=.*made for another one.*name another folder"):
        compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / HEADER).unlink()
    with pytest.raises(DataError, match=r"found runs without it"):
        compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")


@pytest.mark.slow
def test_a_broken_file_is_named_and_a_half_written_one_ignored(tmp_path: Path) -> None:
    problem = toy("cnn")
    first = compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")
    (file,) = (tmp_path / "runs").glob("lau*.json")
    text = file.read_text()
    (file.parent / f".{file.name}.partial").write_text(text[:40])
    again = compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")
    assert again == first
    file.write_text(text[:40])
    with pytest.raises(DataError, match=file.name[:20]):
        compare(problem.model, problem.loader(), [3], [QUICK], 1, out=tmp_path, device="cpu")


def test_the_claim_that_a_kill_left_beside_a_finished_run_goes(tmp_path: Path) -> None:
    problem = toy("cnn")
    call = partial(compare, problem.model, problem.loader(), [3], [QUICK], 1, device="cpu")
    call(out=tmp_path)
    runs = tmp_path / "runs"
    whole = {file.name for file in runs.iterdir()}
    (finished,) = runs.glob("lau*.json")
    (other,) = runs.glob("original*.json")
    finished.with_suffix(".lock").touch()
    with FileLock(other.with_suffix(".lock")):  # another process is about to give this one back
        call(out=tmp_path)
        assert other.with_suffix(".lock").exists()
    assert {file.name for file in runs.iterdir()} - {other.with_suffix(".lock").name} == whole


def test_a_method_that_fails_is_a_row_that_says_why(tmp_path: Path) -> None:
    problem = toy("cnn")
    needy = build("neggrad", {"epochs": 1})
    table = compare(
        problem.model, problem.forget_loader(), [3], [needy, "finetune"], 1, out=tmp_path,
        device="cpu",
    )  # fmt: skip
    rows = {row.title: row for row in table.rows()}
    assert rows["neggrad (epochs=1)"].note == ""
    failed = rows["finetune"]
    assert (failed.runs, failed.failed, failed.mean) == (0, 1, {})
    assert "retain" in failed.note
    for text in (table.markdown(), table.csv(), table.latex()):
        assert "retain" in text
    said: list[str] = []
    compare(
        problem.model, problem.forget_loader(), [3], ["finetune"], 1, out=tmp_path, device="cpu",
        retry=True, say=said.append,
    )  # fmt: skip
    assert said[1].rpartition("seed 0: ")[2] == failed.note  # tried again, and failed again


def test_single_samples_have_no_unlearning_score() -> None:
    problem = toy("cnn")
    table = compare(
        problem.model, problem.loader(), [Instances([3, 7])],
        [build("neggrad", {"epochs": 1, "lr": 0.001})], 1, test=held_out(problem), device="cpu",
    )  # fmt: skip
    assert table.runs[1].target == "instances 3, 7"
    assert set(table.runs[1].scores) == {"D_r", "D_f", "D_tr", "seconds"}


def test_mean_and_deviation_over_seeds_in_three_forms() -> None:
    values = [0.5, 0.75, 0.7]
    table = Comparison(
        (
            *(run_of("a_b | c", seed, US=value, D_r=90.0) for seed, value in enumerate(values)),
            run_of("d", 0, US=0.25),
            run_of("d", 1, error="it broke at 50 %"),
        )
    )
    first, second = table.rows()
    assert first.mean["US"] == mean(values)
    assert first.deviation["US"] == stdev(values)
    assert second.deviation == {}
    assert (second.seeds, second.note) == ("1 of 2", "it broke at 50 %")
    lines = table.markdown().splitlines()
    assert lines[2] == (
        "| a_b \\| c | classes 3 | 3 | 90.00 ± 0.00 | - | - | - | 0.6500 ± 0.1323 | - |  |"
    )
    assert lines[3].endswith("| 0.2500 | - | it broke at 50 % |")
    read = list(csv.DictReader(io.StringIO(table.csv())))
    assert float(read[0]["US"]) == first.mean["US"]
    assert float(read[0]["US deviation"]) == first.deviation["US"]
    assert read[1]["US deviation"] == ""
    latex = table.latex()
    assert r"a\_b | c & classes 3 & $90.00 \pm 0.00$ & -- &" in latex
    assert r"d (1 of 2 seeds) & classes 3" in latex
    assert all(line.count("&") == 7 for line in latex.splitlines() if line.endswith(r" \\"))


@pytest.mark.slow
def test_a_masked_head_is_marked_in_every_form(tmp_path: Path) -> None:
    problem = toy("cnn")
    table = compare(
        problem.model, problem.loader(), [3], ["linear_filtration"], 1, test=held_out(problem),
        device="cpu",
    )  # fmt: skip
    original, masked = table.rows()
    note = "head masked: D_f and D_tf are 0 by construction"
    assert (masked.mean["D_f"], masked.note, masked.head_masked) == (0.0, note, True)
    assert (original.note, original.head_masked) == ("", False)
    for text in (table.markdown(), table.csv()):
        assert [note in line for line in text.splitlines()[-2:]] == [False, True]
    assert r"linear\_filtration (head masked) & classes 3 & " in table.latex()
    rows = table.to_json()["rows"]
    assert isinstance(rows, list)
    assert [row["head_masked"] for row in rows] == [False, True]
    table.save(tmp_path)
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert note in page
    assert "D_f and D_tf 0 by construction (head masked): linear_filtration." in page


def test_a_run_without_figures_has_nothing_to_mark() -> None:
    method = {"method": "linear_filtration"}
    failed = RunRecord("a", method, {}, "classes 3", 0, error="it broke")
    (row,) = Comparison((failed,)).rows()
    assert (row.note, row.head_masked) == ("it broke", False)


def test_tables_are_written_beside_the_runs(tmp_path: Path) -> None:
    table = Comparison((run_of("a", 0, US=0.5),))
    files = table.save(tmp_path)
    names = [str(file.relative_to(tmp_path)) for file in files]
    assert names[:4] == ["table.md", "table.csv", "table.tex", "comparison.html"]
    assert names[4:] == ["pictures/score.svg", "pictures/score.csv"]
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table.markdown()
    assert json.dumps(table.to_json())


def test_writing_leaves_the_old_text_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "new")
    assert file.read_text() == "old"


def test_what_cannot_be_run_is_said_before_anything_runs() -> None:
    problem = toy("cnn")
    model, loader = problem.model, problem.loader()
    with pytest.raises(UnknownMethod, match="laus"):
        compare(model, loader, [3], ["laus"])
    with pytest.raises(BadHyperparameter, match=r"methods: .* lau twice"):
        compare(model, loader, [3], ["lau", "lau"])
    with pytest.raises(BadHyperparameter, match="expected a list of names"):
        compare(model, loader, [3], "lau")
    with pytest.raises(BadHyperparameter, match="seeds=0"):
        compare(model, loader, [3], ["lau"], 0)
    with pytest.raises(BadHyperparameter, match=r"targets: .* classes 3 twice"):
        compare(model, loader, [3, [3]], ["lau"])
    with pytest.raises(BadTarget, match="from 0 to 3"):
        compare(model, loader, [9], ["lau"])
    with pytest.raises(BadTarget, match="depoison"):
        compare(model, loader, [Depoison([1])], ["lau"])
    with pytest.raises(DataError, match="read again"):
        compare(model, iter(loader), [3], ["lau"])
    test = held_out(problem)
    with pytest.raises(DataError, match=r"test: .* than those of validate, found the same loader"):
        compare(model, loader, [3], ["lau"], test=test, validate=test)
    with pytest.raises(DataError, match=r"test: .* than those of loader, found 240 of the same"):
        compare(model, loader, [3], ["lau"], test=problem.train)


def test_a_wrong_device_or_a_launch_without_a_folder_is_refused_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, out = toy("cnn"), tmp_path / "out"
    with pytest.raises(BadHyperparameter, match="device"):
        compare(problem.model, problem.loader(), [3], ["lau"], out=out, device="nowhere")
    two = Place(torch.device("cpu"), rank=0, world=2)
    monkeypatch.setattr("forgetkit.comparing.grid.choose_place", lambda *_: two)
    with pytest.raises(BadHyperparameter, match="in which the 2 processes of this launch"):
        compare(problem.model, problem.loader(), [3], ["lau"])
    assert not out.exists()
