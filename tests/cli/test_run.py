"""``forgetkit run`` on every kind of checkpoint, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import Result

from forgetkit.saving import save_model
from forgetkit.testing.interrupting import watched_saves

Invoke: TypeAlias = Callable[..., Result]


def words(colours: Path, out: Path, *more: object) -> list[object]:
    return ["--data", colours, "--classes", "2", "--using", "lau", "--out", out, *more]


def test_a_factory_with_a_state_dict_forgets_a_colour(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    out, patch = tmp_path / "out", tmp_path / "edit.safetensors"
    done = invoke(
        "run", name, "--weights", weights, *words(colours, out, "--patch", patch, "--json")
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["before"]["forget"]["accuracy"] == 1.0
    assert record["after"]["forget"]["accuracy"] == 0.0
    assert record["after"]["validation_forget"]["accuracy"] == 0.0
    assert record["after"]["validation_retain"]["accuracy"] == 1.0
    assert record["samples"]["forget"] == 8
    assert not record["rolled_back"]
    old, new = torch.load(weights, weights_only=True), load_file(out / "model.safetensors")
    assert [key for key in old if not torch.equal(old[key], new[key])] == ["4.weight", "4.bias"]
    assert patch.is_file()


def test_the_table_goes_to_standard_output_and_the_rest_to_standard_error(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    done = invoke("run", name, "--weights", weights, *words(colours, tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "Layer Attack Unlearning" in done.stdout
    assert "100.00 %" in done.stdout
    assert "wrote" not in done.stdout
    assert "24 training images, 12 test images" in done.stderr


def test_an_interrupted_run_goes_on(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    folder, out = tmp_path / "progress", tmp_path / "out"
    command = ["run", name, "--weights", weights, "--data", colours, "--classes", "2"]
    command += ["--using", "finetune", "--set", "epochs=3", "--resumable", folder, "--json"]
    with watched_saves(until=2):
        done = invoke(*command, "--out", out)
    assert done.exit_code == 130
    assert len(list(folder.iterdir())) == 1
    assert not out.exists()
    done = invoke(*command, "--out", out)
    assert any("went on after epoch 2" in note for note in json.loads(done.stdout)["notes"])
    assert list(folder.iterdir()) == []


def test_auto_takes_a_time_limit_and_says_why_it_chose(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    done = invoke(
        "run", name, "--weights", weights, "--data", colours, "--classes", "2", "--out",
        tmp_path / "out", "--set", "seconds=60",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "auto: " in done.stdout
    assert "within the 60 s allowed" in " ".join(done.stdout.split())


def test_a_name_is_as_good_as_a_number(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    done = invoke(
        "run", name, "--weights", weights, "--data", colours, "--classes", "red,blue",
        "--using", "lau", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["forget_classes"] == [2, 0]


def test_a_transformers_folder_keeps_its_form(
    invoke: Invoke, colours: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label={0: "red", 1: "green", 2: "blue"},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    done = invoke("run", tmp_path / "vit", *words(colours, tmp_path / "out", "--json"))
    assert done.exit_code in (0, 3), done.output
    # The model calls class 2 blue, and the folder `blue` holds the forget samples.
    assert json.loads(done.stdout)["forget_classes"] == [2]
    if done.exit_code == 0:
        again = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
        assert again.config.id2label[2] == "blue"


def test_a_timm_folder_keeps_its_form(invoke: Invoke, colours: Path, tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(model, str(tmp_path / "timm"), safe_serialization=True)
    options = ["--size", "32", "--seed", "1", "--json"]
    done = invoke("run", tmp_path / "timm", *words(colours, tmp_path / "out", *options))
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "test_resnet"


def test_a_torchvision_name_takes_a_state_dict(
    invoke: Invoke, colours: Path, tmp_path: Path
) -> None:
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(num_classes=3).state_dict(), tmp_path / "net.pth")
    done = invoke(
        "run", "torchvision/squeezenet1_1", "--weights", tmp_path / "net.pth",
        "--num-classes", "3", "--size", "48", *words(colours, tmp_path / "out", "--json"),
    )  # fmt: skip
    assert done.exit_code in (0, 3), done.output
    assert json.loads(done.stdout)["method"]["method"] == "lau"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--classes", "7"], "7"),
        (["--classes", "mauve"], "mauve"),
        (["--classes", ","], "--classes: expected"),
        (["--using", "laus"], "did you mean 'lau'"),
        (["--set", "alpha=2"], "alpha must be a number in [0, 1]"),
        (["--set", "alpha=much"], "expected a number in [0, 1]"),
        (["--set", "alpha"], "expected NAME=VALUE"),
        (["--set", "alhpa=0.5"], "did you mean alpha"),
        (["--set", "double_softmax=maybe"], "True or False"),
        (["--data", "nowhere"], "found nothing there"),
        (["--head", "nothing.here"], "nothing.here"),
        (["--using", "auto", "--set", "nonsense=9"], "nonsense='9'"),
        (["--using", "auto", "--set", "seconds=soon"], "expected a number"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    invoke: Invoke,
    colours: Path,
    factory: tuple[str, Path],
    tmp_path: Path,
    change: list[str],
    says: str,
) -> None:
    name, weights = factory
    options = dict(zip(*[iter(map(str, words(colours, tmp_path / "out")))] * 2, strict=True))
    options |= dict(zip(change[::2], change[1::2], strict=True))
    flat = [word for pair in options.items() for word in pair]
    done = invoke("run", name, "--weights", weights, *flat)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["no-such-folder", "torchvision/no_such_net", "colour_models:broken"]
)
def test_a_model_that_cannot_be_loaded_is_refused(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path, name: str
) -> None:
    done = invoke("run", name, *words(colours, tmp_path / "out"))
    assert done.exit_code == 2, done.output
    assert name in done.stderr


def test_a_run_that_costs_too_much_is_rolled_back_with_status_3(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = factory
    done = invoke(
        "run", name, "--weights", weights, "--data", colours, "--classes", "2", "--using",
        "neggrad", "--set", "lr=5", "--set", "max_norm=None", "--set", "momentum=0",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    record = json.loads(done.stdout)
    assert record["rolled_back"]
    assert done.exit_code == 3
    assert record["saved"] == []
    assert not (tmp_path / "out").exists()


def test_the_place_of_the_result_is_looked_at_before_the_work(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    save_model(nn.Linear(2, 2), out)
    done = invoke("run", out, *words(colours, tmp_path / "out" / ".." / "out"))
    assert done.exit_code == 2
    assert "--out" in done.stderr
    assert "another folder than MODEL" in done.stderr
    (out / "config.json").write_text("mine")
    done = invoke("run", "no_such_package:model", *words(colours, out))
    assert done.exit_code == 2
    assert "['config.json'] in it, which forgetkit did not write. Choose another folder." in (
        " ".join(done.stderr.split())
    )
    (out / "config.json").unlink()
    name, weights = factory
    done = invoke("run", name, "--weights", weights, *words(colours, out))
    assert done.exit_code == 0, done.output
    assert f"{out} holds an earlier save, which this one will replace" in done.stderr


FACTORIES = """
import torch
from torch import nn

class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)
    def forward(self, images):
        features = images.mean(dim=(2, 3))
        return {"features": features.sum(dim=1), "logits": self.head(features)}

class Alike(Several):
    def forward(self, images):
        logits = self.head(images.mean(dim=(2, 3)))
        return {"main": logits, "aux": -logits.detach()}

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 64, 3))
        self.head = nn.Linear(3, 3)
    def forward(self, images):
        return self.head((images.flatten(2).transpose(1, 2) + self.places).mean(dim=1))

def several():
    return Several()

def alike():
    return Alike()

def fixed():
    return Fixed()

def wants(width):
    return nn.Linear(width, 3)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module of models that can be imported."""
    (tmp_path / "odd_models.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_models", raising=False)
    return "odd_models"


def test_logits_may_be_one_of_several_outputs(
    invoke: Invoke, colours: Path, factories: str, tmp_path: Path
) -> None:
    told = words(colours, tmp_path / "out", "--size", "16")
    done = invoke("run", f"{factories}:several", *told)
    assert done.exit_code in (0, 3), done.output
    assert "24 training images" in done.stderr


@pytest.mark.parametrize("command", ["run", "inspect", "audit"])
@pytest.mark.slow
def test_one_of_several_outputs_is_named(
    invoke: Invoke, colours: Path, factories: str, tmp_path: Path, command: str
) -> None:
    about: list[object] = ["--data", colours, "--classes", "2"] if command != "inspect" else []
    if command == "run":
        about = words(colours, tmp_path / "out")
    told = [*about, "--size", "16"]
    model = f"{factories}:alike"
    refused = invoke(command, model, *told)
    assert refused.exit_code == 2
    assert "output=" in refused.stderr
    named = invoke(command, model, *told, "--output", "main")
    assert named.exit_code in (0, 3), named.output
    wrong = invoke(command, model, *told, "--output", "7")
    assert wrong.exit_code == 2
    assert "output=7 does not fit" in wrong.stderr


@pytest.mark.parametrize("command", ["run", "inspect"])
@pytest.mark.parametrize(
    ("name", "says"),
    [("fixed", "--size on the command line"), ("wants", "without arguments that builds the model")],
)
def test_models_that_cannot_be_called_are_told_in_one_sentence(
    invoke: Invoke,
    colours: Path,
    factories: str,
    tmp_path: Path,
    command: str,
    name: str,
    says: str,
) -> None:
    told = words(colours, tmp_path / "out") if command == "run" else []
    done = invoke(command, f"{factories}:{name}", *told)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.output
    if name == "fixed" and command == "inspect":
        assert invoke(command, f"{factories}:fixed", "--size", "8").exit_code == 0


NO_FILES = "/proc/forgetkit"  # takes none, not even from the superuser


@pytest.mark.parametrize("place", ["--out", "--patch"])
@pytest.mark.parametrize("used", ["used", "used/mine.txt/new", "used/mine.txt/new/er", NO_FILES])
def test_places_that_cannot_be_written_are_refused_before_the_work(
    invoke: Invoke, colours: Path, factory: tuple[str, Path], tmp_path: Path, place: str, used: str
) -> None:
    if used == NO_FILES and not Path("/proc/self").exists():
        pytest.skip("needs a folder that takes no files, such as /proc")
    name, weights = factory
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    used = str(tmp_path / used)
    told = words(colours, tmp_path / "out", "--patch", tmp_path / "p.safetensors")
    told[[str(word) for word in told].index(place) + 1] = used
    done = invoke("run", name, "--weights", weights, *told)
    assert done.exit_code == 2
    assert used in done.stderr
    assert "expected" in done.stderr
    assert "training images" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_made_is_one_sentence(
    invoke: Invoke, factory: tuple[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("{}")
    (tmp_path / "audit.json").write_text(json.dumps({"findings": []}))
    done = invoke("report", tmp_path / "audit.json", "--out", tmp_path / "file" / "x.html")
    assert done.exit_code == 2
    assert "expected a path that can be read or written" in done.stderr
