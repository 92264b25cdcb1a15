"""A command leaves the process group that it joined, and no other."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
import typer
from typer.testing import CliRunner

from forgetkit import cli


def join() -> None:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # not in its __all__
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


def grouped() -> None:
    assert torch.distributed.is_initialized()


def run(work: Callable[[], None]) -> None:
    """Run a command under the callback of all commands."""
    program = typer.Typer()
    program.callback()(cli._main)
    program.command("work")(work)
    assert CliRunner().invoke(program, ["work"]).exit_code == 0


def test_a_command_leaves_the_group_that_it_joined() -> None:
    run(join)
    assert not torch.distributed.is_initialized()
    gc.collect()  # as the fixture process_group does


@pytest.mark.usefixtures("process_group")
def test_a_command_stays_in_the_group_of_its_caller() -> None:
    run(grouped)
    grouped()
