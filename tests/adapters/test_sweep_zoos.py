"""The sweeps: all of transformers, and of timm and torchvision what fits the time.

``FORGETKIT_SWEEP=all`` runs every model of every zoo, which takes about an hour of one core.
"""

from __future__ import annotations

import os

import pytest

from forgetkit.dryrun.sweep import timm_zoo, torchvision_zoo, transformers_zoo

ALL = os.environ.get("FORGETKIT_SWEEP") == "all"
FINE = ("exact", "close", "weak", "shapes")
NOT_INSTALLED = {"dinat:DinatForImageClassification"}  # needs natten
TIMM_ENCODERS = "_enc"
TIMM_SAMPLE = 40
TORCHVISION_SAMPLE = 8

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def sample(names: list[str], size: int) -> list[str]:
    """Return every name, or as many as asked spread over the list."""
    if ALL or size >= len(names):
        return names
    return [names[round(step * (len(names) - 1) / (size - 1))] for step in range(size)]


def timm_names() -> list[str]:
    """Return all of timm, or models of as many source modules as fit."""
    names = timm_zoo.names()
    return names if ALL else sample(names[:98], TIMM_SAMPLE)


@pytest.mark.parametrize("name", timm_names())
def test_timm(name: str) -> None:
    outcome = timm_zoo.one(name)
    if name.endswith(TIMM_ENCODERS):
        assert (outcome.status, outcome.detail.partition(":")[0]) == ("refused", "headless")
    else:
        assert outcome.status in FINE, outcome


@pytest.mark.parametrize("name", transformers_zoo.names())
def test_transformers(name: str) -> None:
    if name in NOT_INSTALLED:
        pytest.importorskip("natten")
    outcome = transformers_zoo.one(name)
    assert outcome.status in FINE, outcome


@pytest.mark.parametrize("name", sample(torchvision_zoo.names(), TORCHVISION_SAMPLE))
def test_torchvision(name: str) -> None:
    outcome = torchvision_zoo.one(name)
    assert outcome.status in FINE, outcome
