"""Settings for all tests: few threads, a fixed seed, no network."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# Before anything imports these libraries: a test that reaches for the network must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Start every test from one random state, and let none leak into the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def pytest_collection_finish() -> None:
    """Take what the imports left out of garbage collection: a fifth of the time of short tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let it be collected again, so that extensions find nothing leaked at the end."""
    gc.unfreeze()
