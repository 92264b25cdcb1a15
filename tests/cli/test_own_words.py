"""The command line speaks of its own options and finds the user's own package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from forgetkit.cli import app


@pytest.mark.slow
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
    found = CliRunner().invoke(app, ["inspect", "nobody/no-such-model"])
    assert found.exit_code == 2
    assert "Pass --download, " in found.output
    weights_alone = tmp_path / "some.pt"
    torch.save({}, weights_alone)
    found = CliRunner().invoke(app, ["inspect", str(weights_alone)])
    assert found.exit_code == 2
    assert f"--weights '{weights_alone}'" in found.output


def test_paths_in_messages_are_not_rewritten(tmp_path: Path) -> None:
    for name in ("state_dict.pt", "my_num_classes.safetensors"):
        found = CliRunner().invoke(app, ["inspect", str(tmp_path / name)])
        assert found.exit_code == 2
        assert name in found.output
