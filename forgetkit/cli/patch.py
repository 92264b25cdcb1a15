"""``forgetkit patch show|apply|revert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from forgetkit.cli.output import Json, reports_errors, say, show, show_json

app = typer.Typer(
    help="Look at a model edit kept as a file, or put it on and take it off a checkpoint.",
    no_args_is_help=True,
)

PatchFile: TypeAlias = Annotated[Path, typer.Argument(metavar="FILE", help="A patch.")]
Checkpoint: TypeAlias = Annotated[
    Path,
    typer.Argument(help="A .safetensors file, a torch state dict, a transformers or timm folder."),
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="Where to write; default: into the checkpoint itself.")
]


@app.command("show")
@reports_errors
def show_patch(file: PatchFile, as_json: Json = False) -> None:
    """Show which tensors a patch changes and the request that made it."""
    from forgetkit.patch import Patch

    found = Patch.load(file)
    if not as_json:
        show(found)
        return
    show_json(
        {
            "tensors": {
                name: {
                    "dtype": found.entries[name].before.dtype,
                    "shape": list(found.entries[name].before.shape),
                }
                for name in found.names
            },
            "bytes": found.nbytes,
            "fingerprinted": len(found.entries),
            "request": found.request,
        }
    )


@app.command("apply")
@reports_errors
def apply_patch(
    file: PatchFile, checkpoint: Checkpoint, out: Out = None, as_json: Json = False
) -> None:
    """Put the edit on a checkpoint that is as it was before."""
    from forgetkit.patch import Patch

    _report(Patch.load(file).apply_to_file(checkpoint, out), as_json=as_json)


@app.command("revert")
@reports_errors
def revert_patch(
    file: PatchFile, checkpoint: Checkpoint, out: Out = None, as_json: Json = False
) -> None:
    """Take the edit off a checkpoint that holds it, bit for bit."""
    from forgetkit.patch import Patch

    _report(Patch.load(file).revert_file(checkpoint, out), as_json=as_json)


def _report(files: list[Path], *, as_json: bool) -> None:
    if as_json:
        show_json({"written": [str(file) for file in files]})
        return
    for file in files:
        say(f"wrote {file}")
