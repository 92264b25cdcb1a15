"""``search``: ranges, objective, budget, and a result that ``using`` takes."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from forgetkit.api import forget
from forgetkit.data.loaders import Reading
from forgetkit.errors import BadHyperparameter, BadTarget, DataError, UnlearningFailed
from forgetkit.goal import Depoison, Instances
from forgetkit.losses import unlearning_score
from forgetkit.method import all_methods, build
from forgetkit.searching import Domain, Search, domains_of, explore, search
from forgetkit.testing.toys import Toy, toy

pytest.importorskip("optuna")
WEAK = build("neggrad", {"epochs": 5, "lr": 1e-5})


def held_out(problem: Toy) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(problem.test, batch_size=64)


def weak_search(problem: Toy, runs: int = 8, seed: int = 0) -> Search:
    return explore(
        problem.model, WEAK, [3], problem.loader(), validate=held_out(problem),
        fields={"lr": (1e-5, 0.02)}, runs=runs, seed=seed, device="cpu",
    )  # fmt: skip


def test_it_finds_settings_that_work_where_those_given_do_not() -> None:
    problem = toy("cnn")
    before = copy.deepcopy(problem.model.state_dict())
    found = weak_search(problem)
    after = problem.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(found.runs) == 8
    assert found.runs[0].settings == {"lr": 1e-5}
    assert found.default == found.runs[0].value
    assert found.default is not None
    assert found.value > found.default + 0.1
    assert found.value == max(run.value for run in found.runs if run.value is not None)


def test_labels_that_are_not_listed_are_read_once_for_all_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = toy("cnn")
    read = list[int]()

    def labels_read(reading: Reading, positions: Tensor, *_: object) -> Tensor:
        read.append(len(positions))
        assert isinstance(reading.dataset, TensorDataset)
        return reading.dataset.tensors[1]

    monkeypatch.setattr("forgetkit.data.sources.stored", lambda *_: None)
    monkeypatch.setattr("forgetkit.data.sources._labels_read", labels_read)
    weak_search(problem, runs=3)
    assert read == [len(problem.train), len(problem.test)]


def test_the_value_is_us_on_validation_data_of_a_run_with_the_best_settings() -> None:
    problem = toy("cnn")
    found = weak_search(problem, runs=4)
    assert found.best.keys() == {"epochs", "lr"}  # what was given stays, what was searched is found
    twin = Toy(copy.deepcopy(problem.model), problem.train, problem.test)
    request = forget(twin.model).classes([3]).using("neggrad", **found.best).seed(0).on("cpu")
    request.validate(held_out(problem)).run(problem.loader(), guard=None)
    kept, gone = twin.accuracy(twin.test, [0, 1, 2]), twin.accuracy(twin.test, [3])
    assert found.value == pytest.approx(unlearning_score(kept, gone), abs=1e-6)


@pytest.mark.slow
def test_the_same_seed_finds_the_same_and_another_one_looks_elsewhere() -> None:
    first, again = weak_search(toy("cnn"), runs=3), weak_search(toy("cnn"), runs=3)
    assert [run.settings for run in first.runs] == [run.settings for run in again.runs]
    assert [run.value for run in first.runs] == [run.value for run in again.runs]
    other = weak_search(toy("cnn"), runs=3, seed=1)
    assert other.runs[1].settings != first.runs[1].settings


def test_with_a_reference_the_distance_of_accuracies_counts() -> None:
    problem = toy("cnn")
    found = explore(
        problem.model, WEAK, Instances([3, 7]), problem.loader(), validate=held_out(problem),
        reference=problem.model, fields={"lr": (1e-5, 0.5)}, runs=4, device="cpu",
    )  # fmt: skip
    own = {
        "D_f": 100.0,
        "D_r": 100 * problem.accuracy(problem.train, [0, 1, 2, 3]),
        "D_tr": 100 * problem.accuracy(problem.test, [0, 1, 2, 3]),
    }
    for run in found.runs:
        assert run.scores.keys() == own.keys()
        gaps = [abs(run.scores[name] - own[name]) for name in own]
        # D_r is without the two samples, all others of it are right in this toy.
        assert run.value == pytest.approx(-sum(gaps) / 3, abs=1e-4)
    assert found.value <= 0
    assert found.value == max(cast("float", run.value) for run in found.runs)


def test_search_returns_the_best_of_explore() -> None:
    problem = toy("cnn")
    best = search(
        problem.model, WEAK, [3], problem.loader(), validate=held_out(problem),
        fields={"lr": (1e-5, 0.02)}, runs=3, device="cpu",
    )  # fmt: skip
    assert best == weak_search(toy("cnn"), runs=3).best


def test_time_is_a_budget_too_and_one_run_is_always_made() -> None:
    problem = toy("cnn")
    found = explore(
        problem.model, WEAK, [3], problem.loader(), validate=held_out(problem), minutes=1e-9,
        device="cpu",
    )  # fmt: skip
    assert len(found.runs) == 1


def test_default_fields_and_their_ranges() -> None:
    domains = domains_of(build("lau", {}))
    assert set(domains) == {
        "lr", "epochs", "alpha", "temperature", "attack_step", "attack_steps", "share",
    }  # fmt: skip
    assert domains["lr"] == Domain(0.003 / 100, 0.3, log=True)
    assert domains["alpha"] == Domain(0.0, 1.0)
    assert domains["epochs"] == Domain(7, 120, log=True, integer=True)
    assert domains["temperature"] == Domain(0.1, 100.0, log=True)


def test_fields_by_name_and_by_range() -> None:
    lau = build("lau", {})
    domains = domains_of(lau, ["attack", "edit_bias", "momentum"])
    assert domains["attack"].options == ("partial", "full")
    assert domains["edit_bias"].options == (False, True)
    assert domains["momentum"] == Domain(0.0, 0.999)
    given = domains_of(lau, {"lr": (1e-4, 1e-2), "alpha": (0.2, 0.4), "epochs": (1, 5)})
    assert given["lr"] == Domain(1e-4, 1e-2, log=True)
    assert given["alpha"] == Domain(0.2, 0.4)
    assert given["epochs"] == Domain(1, 5, integer=True)


def test_every_range_lies_within_the_declared_one() -> None:
    searched = 0
    for method in all_methods():
        made = method()
        try:
            domains = domains_of(made)
        except BadHyperparameter:  # a closed form without numbers
            assert not made.trains
            continue
        for name, domain in domains.items():
            searched += 1
            low, high = domain.low, domain.high
            for value in (low, high):
                build(method.card.slug, {name: int(value) if domain.integer else value})
            assert low < high, (method.card.slug, name)
            assert low > 0 or not domain.log, (method.card.slug, name)
    assert searched > 50


def test_settings_that_break_a_run_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetkit.api import Request

    problem = toy("cnn")
    real, calls = Request.run, [0]

    def sometimes(self: Request, *loader: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] % 2:
            raise UnlearningFailed("it broke")
        return real(self, *loader, **options)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(Request, "run", sometimes)
    found = weak_search(problem, runs=4)
    assert [run.error for run in found.runs] == ["it broke", "", "it broke", ""]
    assert found.default is None
    assert found.runs[0].value is None

    def never(*_: object, **__: object) -> object:
        raise UnlearningFailed("it broke")

    monkeypatch.setattr(Request, "run", never)
    with pytest.raises(UnlearningFailed, match=r"found 3 that failed.*it broke"):
        weak_search(problem, runs=3)


def test_there_is_no_place_for_test_data() -> None:
    for function in (search, explore):
        assert "test" not in inspect.signature(function).parameters
        assert "audit" in (function.__doc__ or "")


def test_what_cannot_be_searched_is_said_before_anything_runs() -> None:
    problem = toy("cnn")

    def refused(*changes: object, **options: object) -> None:
        goal, *_ = (*changes, [3])
        keep = {"validate": held_out(problem), "device": "cpu"} | options
        explore(problem.model, "lau", goal, problem.loader(), **keep)  # type: ignore[arg-type]  # wrong on purpose

    with pytest.raises(BadHyperparameter, match="runs=0"):
        refused(runs=0)
    with pytest.raises(BadHyperparameter, match="minutes=-1"):
        refused(minutes=-1)
    with pytest.raises(BadHyperparameter, match="'alhpa'"):
        refused(fields=["alhpa"])
    with pytest.raises(BadHyperparameter, match="attack_clamp"):
        refused(fields=["attack_clamp"])
    with pytest.raises(BadHyperparameter, match=r"alpha.*in \[0, 1\]"):
        refused(fields={"alpha": (0.5, 2.0)})
    with pytest.raises(BadHyperparameter, match="at least one"):
        refused(fields=[])
    with pytest.raises(BadHyperparameter, match="retrained model"):
        refused(Instances([3]))
    with pytest.raises(BadTarget, match="depoison"):
        refused(Depoison([3]))
    kept = problem.test.tensors[1] != 3
    only = TensorDataset(*(tensor[kept] for tensor in problem.test.tensors))
    with pytest.raises(DataError, match="none of the forgotten classes"):
        refused(validate=DataLoader(only, 64))
    with pytest.raises(DataError, match=r"validate: .* of loader, found \d+ of the same"):
        refused(validate=DataLoader(problem.train, 64))


@pytest.mark.slow
def test_without_optuna_one_sentence_says_what_to_install() -> None:
    code = (
        "import sys, torch; from forgetkit.searching import explore\n"
        "assert 'optuna' not in sys.modules\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'optuna' else real(name, *rest)\n"
        "try: explore(torch.nn.Linear(2, 2), 'lau', [0], [], validate=[])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("BadHyperparameter search: expected the package optuna")
    assert "pip install forgetkit[search]" in done.stdout
