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


@pytest.fixture
def process_group() -> Iterator[None]:
    """A gloo group of this process alone.

    What is left of it is collected here and not whenever it happens, in a forked worker of a later
    test's loader, say: there its destructor waits for threads that only this process has.
    """
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # not in its __all__
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    gc.collect()


def pytest_collection_finish() -> None:
    """Take what the imports left out of garbage collection: a fifth of the time of short tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let it be collected again, so that extensions find nothing leaked at the end."""
    gc.unfreeze()
