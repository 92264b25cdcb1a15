"""Keep an edit as a file, put it on a copy of the model and take it off again."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

from forgetkit import Patch, PatchMismatch, forget
from forgetkit.testing.toys import toy


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two models hold the same bits."""
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def main() -> None:
    problem = toy("cnn")  # a toy network for 8 x 8 images of four classes
    model, original = problem.model, copy.deepcopy(problem.model)
    result = forget(model).classes([3]).using("lau").seed(0).run(problem.loader())

    with tempfile.TemporaryDirectory() as folder:
        file = result.patch.save(Path(folder) / "forget-3.safetensors")
        patch = Patch.load(file)
        print(f"{', '.join(patch.names)} changed; {file.stat().st_size} bytes on disk")

    deployed = copy.deepcopy(original)
    rows = [("fresh copy", equal(deployed, original), equal(deployed, model))]
    patch.apply(deployed)
    rows.append(("after apply", equal(deployed, original), equal(deployed, model)))
    patch.revert(deployed)
    rows.append(("after revert", equal(deployed, original), equal(deployed, model)))

    print(f"\n{'':14}  equals original  equals edited model")
    for state, like_original, like_edited in rows:
        print(f"{state:14}  {like_original!s:15}  {like_edited!s}")
    try:
        patch.apply(toy("vit").model)
    except PatchMismatch as error:
        print(f"\nanother model is refused: {error}")


if __name__ == "__main__":
    main()
