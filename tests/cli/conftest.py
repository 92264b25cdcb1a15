"""Coloured images, a network that tells the colours apart, and a way to run commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner, Result

COLOURS = {"blue": (0.1, 0.1, 0.9), "green": (0.1, 0.9, 0.1), "red": (0.9, 0.1, 0.1)}
FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16), nn.ReLU(),
                         nn.Linear(16, 3))

def broken():
    return "no model"
"""

Invoke: TypeAlias = Callable[..., Result]


def write_images(folder: Path, names: list[str], count: int) -> None:
    """Write noisy 16-pixel images, one folder a colour, called by ``names``."""
    generator = torch.Generator().manual_seed(0)
    for name, colour in zip(names, COLOURS.values(), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = 0.08 * torch.randn(16, 16, 3, generator=generator)
            pixels = ((torch.tensor(colour) + noise).clamp(0, 1) * 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``train`` and ``test`` of three colours."""
    root = tmp_path_factory.mktemp("colours")
    write_images(root / "train", list(COLOURS), 8)
    write_images(root / "test", list(COLOURS), 4)
    return root


def colour_network() -> nn.Module:
    """Return a network trained on mean colours, normalised as ImageNet is."""
    from forgetkit.images import IMAGENET_MEAN, IMAGENET_STD

    network = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(40)
    means = torch.tensor(list(COLOURS.values()))[labels]
    means = means + 0.05 * torch.randn(120, 3, generator=generator)
    inputs = ((means - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD))[..., None, None]
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Return the name of a factory that can be imported, and weights for what it builds."""
    (tmp_path / "colour_models.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "colour_models", raising=False)
    weights = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(colour_network().state_dict(), weights)
    return "colour_models:build", weights


@pytest.fixture
def invoke() -> Invoke:
    """Return a function that runs one command line in this process."""
    from forgetkit.cli import app

    def run(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    return run
