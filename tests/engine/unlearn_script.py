"""Unlearn a toy model and save its weights; started alone or with ``accelerate launch``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from forgetkit import forget
from forgetkit.testing import toy
from forgetkit.testing.interrupting import watched_saves


def main(method: str, file: str, folder: str = "", until: str = "") -> None:
    """Unlearn, with progress in a folder if one is named, until some epochs are written."""
    torch.manual_seed(17)
    options: dict[str, Any] = {} if method == "lau" else {"epochs": 2, "bn": "frozen"}
    some = toy("vit" if method == "finetune" else "cnn")
    for module in some.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each process would draw its own units
    request = forget(some.model).classes([3]).using(method, **options).on("cpu")
    if folder:
        request = request.resumable(folder)
    with watched_saves(until=int(until) if until else None):
        result = request.run(some.loader(batch_size=32))
    for note in result.notes:
        sys.stdout.write(f"{note}\n")
    state = PartialState()
    sys.stdout.write(f"{state.process_index} of {state.num_processes}: {result.history}\n")
    if state.is_main_process:
        save_file(dict(some.model.state_dict()), file)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    finally:
        # A group that is left to the interpreter's end may abort it there.
        PartialState().destroy_process_group()
