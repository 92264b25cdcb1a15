"""Amnesiac unlearning: what it takes back, what it repairs, when it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

from forgetkit import forget
from forgetkit.errors import BadHyperparameter, DataError
from forgetkit.method import Facts, build
from forgetkit.result import Result
from forgetkit.testing import toy
from forgetkit.testing.toys import ToyCNN, blobs
from forgetkit.training_log import AmnesiacLog
from forgetkit.types import Place
from forgetkit.written_log import WrittenLog


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(
    folder: Path, sensitive: set[int] | None, samples: int | None = None
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """Train a fresh network for two epochs in a fixed order; return all states."""
    torch.manual_seed(3)
    model = ToyCNN()
    images, labels = blobs().tensors
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    model.train()
    states = [state(model)]
    with AmnesiacLog(model, optimizer, folder, sensitive=sensitive, samples=samples) as log:
        for _ in range(2):
            for rows in torch.arange(len(labels)).split(32):
                log.batch(rows)
                optimizer.zero_grad()
                functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                states.append(state(model))
    return model, states


def run(
    model: nn.Module, positions: list[int], loader: object = None, **settings: object
) -> Result:
    request = forget(model).instances(positions).using("amnesiac", **settings).on("cpu").seed(0)
    loader = loader or DataLoader(blobs(), batch_size=32)
    return request.run(loader, guard=None)  # type: ignore[arg-type]  # a DataLoader


def test_all_steps_taken_back_give_the_initial_weights(tmp_path: Path) -> None:
    model, states = trained(tmp_path, None)
    result = run(model, list(range(239)), log=str(tmp_path), epochs=0)
    assert set(model.state_dict()) == set(states[0])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, states[0][name], atol=1e-5, rtol=0)
    assert any("16 of 16 logged steps" in note for note in result.notes)


def test_without_a_step_that_saw_the_sample_nothing_changes(tmp_path: Path) -> None:
    model, states = trained(tmp_path, {5, 1000})
    data = TensorDataset(*(torch.cat([t] * 5) for t in blobs().tensors))  # position 1000 exists
    run(model, [1000], DataLoader(data, batch_size=32), log=str(tmp_path), epochs=0)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(states[-1][name]), name


def test_only_the_steps_that_saw_the_samples_are_taken_back(tmp_path: Path) -> None:
    """The slow twin: train again, and subtract by hand what each such step did."""
    model, states = trained(tmp_path, {5, 77, 200})
    orders = 2 * torch.arange(240).split(32)
    expected = {name: tensor.double() for name, tensor in states[-1].items()}
    for step, rows in enumerate(orders):
        if {5, 200} & set(rows.tolist()):
            for name in expected:
                expected[name] -= states[step + 1][name].double() - states[step][name].double()
    run(model, [5, 200], log=str(tmp_path), epochs=0)
    moved = 0
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], atol=1e-6, rtol=0)
        moved += not tensor.equal(states[-1][name])
    assert moved == len(expected)


def test_weights_in_bfloat16_are_rounded_once(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, set(range(96)))  # three steps of each epoch
    model.to(torch.bfloat16)
    before = state(model)
    changes = WrittenLog(str(tmp_path)).total(WrittenLog(str(tmp_path)).steps)
    with pytest.raises(DataError, match=r"found other weights.* forgotten=\(\)"):
        run(model, list(range(96)), log=str(tmp_path), epochs=0)
    run(model, list(range(96)), log=str(tmp_path), epochs=0, forgotten=())
    twice = []  # where rounding the change as well would give something else
    for name, tensor in model.named_parameters():
        assert tensor.dtype == torch.bfloat16
        assert tensor.equal((before[name].double() - changes[name]).bfloat16()), name
        twice += [] if tensor.equal(before[name] - changes[name].bfloat16()) else [name]
    assert "fc.weight" in twice


def test_a_variance_stays_positive(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, {0})
    variance = model.get_buffer("body.1.running_var")
    before = variance.clone()
    for file in sorted(tmp_path.glob("step-*"))[:1]:  # a step that raised the first of them a lot
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        changes = load_file(file)
        changes["body.1.running_var"][0] = 100.0
        save_file(changes, file, about)
    run(model, [0], log=str(tmp_path), epochs=0)
    assert bool((variance > 0).all())
    assert variance[0] == before[0]
    assert not bool((variance[1:] == before[1:]).any())


def test_requests_one_after_another_take_a_step_back_once(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, {0, 5, 40})
    together, _ = trained(tmp_path / "twin", {0, 5, 40})
    run(together, [0, 5, 40], log=str(tmp_path / "twin"), epochs=0)
    first = run(model, [0], log=str(tmp_path), epochs=0)
    after = state(model)
    with pytest.raises(DataError, match="forgotten with this log before"):
        run(model, [5], log=str(tmp_path), epochs=0)
    second = run(model, [5], log=str(tmp_path), epochs=0, forgotten=[0])
    assert any("took back 0 of 4 logged steps; 2 had been" in note for note in second.notes)
    assert all(tensor.equal(after[name]) for name, tensor in state(model).items())
    third = run(model, [40], log=str(tmp_path), epochs=0, forgotten=(0, 5))
    for name, tensor in together.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=0)
    assert build("amnesiac", third.method.hyperparameters() | {"lr": 0.1}) is not None
    for result in (third, second, first):
        result.undo()
    with pytest.raises(DataError, match="leave forgotten out"):
        run(model, [5], log=str(tmp_path), epochs=0, forgotten=(0,))
    run(model, [5], log=str(tmp_path), epochs=0)
    assert all(tensor.equal(after[name]) for name, tensor in state(model).items())


def test_a_log_that_was_not_closed_cannot_tell(tmp_path: Path) -> None:
    model, states = trained(tmp_path, {0})
    header = json.loads((tmp_path / "log.json").read_text())
    del header["left"]
    (tmp_path / "log.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match="not closed and cannot tell"):
        run(model, [0], log=str(tmp_path), epochs=0)
    assert all(tensor.equal(states[-1][name]) for name, tensor in state(model).items())
    run(model, [0], log=str(tmp_path), epochs=0, forgotten=())


def test_a_repair_that_would_learn_earlier_samples_again_is_noted(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, {0, 40})
    run(model, [0], log=str(tmp_path), epochs=1)
    alone = run(copy.deepcopy(model), [40], log=str(tmp_path), forgotten=(0,))
    named = run(copy.deepcopy(model), [0, 40], log=str(tmp_path), forgotten=(0,))
    assert any("learns them again" in note for note in alone.notes)
    assert not any("learns them again" in note for note in named.notes)
    assert any("took back 2 of 4 logged steps; 2 had" in note for note in named.notes)


def test_the_repair_trains_on_the_rest(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, set(range(12)))
    twin = copy.deepcopy(model)
    kept = DataLoader(TensorDataset(*(t[12:] for t in blobs().tensors)), batch_size=240)
    images, labels = kept.dataset.tensors  # type: ignore[attr-defined]  # a TensorDataset

    def loss(some: nn.Module) -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(some.eval()(images), labels))

    run(model, list(range(12)), log=str(tmp_path), epochs=0)
    run(twin, list(range(12)), log=str(tmp_path), epochs=3, lr=0.05)
    assert loss(twin) < loss(model) / 2


def test_the_last_logged_rate_is_the_default(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, {0, 1})
    result = run(model, [0], log=str(tmp_path))
    assert result.method.hyperparameters()["lr"] == pytest.approx(0.1)


def test_without_repair_the_retain_set_is_not_needed(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, set(range(8)))
    only = DataLoader(TensorDataset(*(t[:8] for t in blobs().tensors)), batch_size=8)
    assert build("amnesiac", {"epochs": 0}).needs == ("forget",)
    run(model, list(range(8)), only, log=str(tmp_path), epochs=0)


@pytest.mark.parametrize("samples", [None, len(blobs())])
def test_samples_in_a_loader_of_their_own_are_found_by_their_place_in_the_training_set(
    tmp_path: Path, samples: int | None
) -> None:
    model, _ = trained(tmp_path, None, samples)
    rows = [70, 130]
    found = []
    for positions, data in ((rows, blobs()), (None, Subset(blobs(), rows))):
        mine = copy.deepcopy(model)
        request = forget(mine).instances(positions).on("cpu").seed(0)
        request = request.using("amnesiac", log=str(tmp_path), epochs=0)
        result = request.run(DataLoader(data, batch_size=32), guard=None)
        assert any("took back 4 of" in note for note in result.notes)
        found.append(state(mine))
    assert all(tensor.equal(found[1][name]) for name, tensor in found[0].items())


def test_samples_whose_place_in_the_training_set_is_not_known_are_refused(tmp_path: Path) -> None:
    images, labels = (t[70:72] for t in blobs().tensors)
    everything = len(blobs())
    for folder, sensitive, samples, wanted in (
        ("all", None, None, "with room for the logged positions, up to"),
        ("some", {70, 71}, None, "up to 71"),
        ("sized", {0, 1}, everything, f"of the {everything} samples"),
    ):
        model, states = trained(tmp_path / folder, sensitive, samples)
        own = DataLoader(TensorDataset(images, labels))
        for loader in (own, [(images, labels)]):
            request = forget(model).instances().on("cpu")
            request = request.using("amnesiac", log=str(tmp_path / folder), epochs=0)
            with pytest.raises(DataError, match=wanted):
                request.run(loader, guard=None)
        for name, tensor in model.state_dict().items():
            assert tensor.equal(states[-1][name]), name


def test_a_subset_in_which_a_log_without_a_size_may_count_is_refused(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, {0, 1})
    part = Subset(blobs(), list(range(100, 150)))
    with pytest.raises(DataError, match=f"found one of 50 in one of {len(blobs())}"):
        run(model, [0], DataLoader(part), log=str(tmp_path), epochs=0)


def test_it_refuses_with_a_sentence(tmp_path: Path) -> None:
    model, states = trained(tmp_path / "log", {0, 1})
    with pytest.raises(BadHyperparameter, match="the folder that AmnesiacLog wrote"):
        run(model, [0])
    with pytest.raises(DataError, match="tracks every sample"):
        run(model, [0, 9], log=str(tmp_path / "log"))
    with pytest.raises(DataError, match="AmnesiacLog wrote, found"):
        run(model, [0], log=str(tmp_path / "nowhere"))
    other = toy("vit").model
    with pytest.raises(DataError, match="a log of this model"):
        run(other, [0], log=str(tmp_path / "log"))
    model.get_parameter("fc.weight").requires_grad_(False)
    with pytest.raises(DataError, match=r"fc.weight frozen; call requires_grad_"):
        run(model, [0], log=str(tmp_path / "log"))
    for name, tensor in model.state_dict().items():
        assert tensor.equal(states[-1][name]), name


def placed(size: int, *positions: int) -> Place:
    return Place(size, torch.tensor(positions))


def test_the_data_set_that_a_log_counts_in_is_found_or_refused(tmp_path: Path) -> None:
    for name, sensitive, samples in (
        ("some", {0, 49}, None), ("all", None, None), ("sized", {0, 49}, 240),
    ):  # fmt: skip
        trained(tmp_path / name, sensitive, samples)
    small, right, large = placed(50, 1), placed(240, 70), placed(300, 90)
    with pytest.raises(DataError, match=r"one data set with room .* up to 49"):
        WrittenLog(tmp_path / "some").located([small, right])  # either may be meant
    assert WrittenLog(tmp_path / "all").located([right, large]) == [70]
    assert WrittenLog(tmp_path / "sized").located([large, right]) == [70]
    with pytest.raises(DataError, match="of the 240 samples"):
        WrittenLog(tmp_path / "sized").located([large])


def test_an_empty_log_has_nothing_to_take_back(tmp_path: Path) -> None:
    model = ToyCNN()
    AmnesiacLog(model, torch.optim.SGD(model.parameters(), 0.1), tmp_path).close()
    before = state(model)
    result = run(model, [3], log=str(tmp_path), epochs=0)
    assert any("took back 0 of 0" in note for note in result.notes)
    assert all(tensor.equal(before[name]) for name, tensor in state(model).items())
    with pytest.raises(DataError, match="pass lr= to repair only"):
        run(model, [3], log=str(tmp_path), epochs=1)


def test_the_repair_takes_the_rate_of_the_last_step_and_learns_statistics(tmp_path: Path) -> None:
    model = ToyCNN()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images, labels = blobs().tensors
    with AmnesiacLog(model, optimizer, tmp_path) as log:
        for rate in (0.1, 0.02):
            optimizer.param_groups[0]["lr"] = rate
            log.batch([0, 1, 2, 3])
            functional.cross_entropy(model(images[:4]), labels[:4]).backward()
            optimizer.step()
    facts = Facts("instances", 10, 90, 10, transformer=False)
    method = build("amnesiac", {"log": str(tmp_path)}).tuned(facts)
    assert (method.to_json()["lr"], method.to_json()["bn"]) == (0.02, "train")


def test_a_schedule_that_came_down_to_nothing_repairs_nothing(tmp_path: Path) -> None:
    model = ToyCNN()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    images, labels = blobs().tensors
    with AmnesiacLog(model, optimizer, tmp_path) as log:
        log.batch([0, 1, 2, 3])
        functional.cross_entropy(model(images[:4]), labels[:4]).backward()
        optimizer.step()
    facts = Facts("instances", 10, 90, 10, transformer=False)
    with pytest.raises(DataError, match="come down to 0; pass lr="):
        build("amnesiac", {"log": str(tmp_path)}).tuned(facts)
    build("amnesiac", {"log": str(tmp_path), "epochs": 0}).tuned(facts)
    build("amnesiac", {"log": str(tmp_path), "lr": 0.1}).tuned(facts)
