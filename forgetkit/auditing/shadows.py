"""Outputs of shadow models on the forget samples, as a file: what costly attacks start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from forgetkit.auditing.evidence import Missing
from forgetkit.errors import DataError


@dataclass(frozen=True)
class Shadows:
    """Logits of many models on the forget set, in its order.

    Args:
        seen: (models, samples, classes) of models that were trained on D_f.
        unseen: (models, samples, classes) of models that were not.
        unlearned: (models, samples, classes) of models that were trained on D_f and then unlearned
            by the method under test with the same settings; none has shape (0, samples, classes).
        labels: (samples,) labels of the forget set, to notice another set or order.
    """

    seen: Tensor
    unseen: Tensor
    unlearned: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            DataError: they do not fit.
        """
        shapes = {name: tuple(getattr(self, name).shape) for name in KINDS}
        wrong = [
            name
            for name, shape in shapes.items()
            if len(shape) != 3 or shape[1:] != shapes["unseen"][1:] or shape[1] != len(self.labels)
        ]
        if wrong:
            raise DataError(
                f"shadows: expected logits (models, samples, classes) of {len(self.labels)} "
                f"samples, found {shapes}; collect all models on the same forget set"
            )


KINDS = ("seen", "unseen", "unlearned")


def save_shadows(shadows: Shadows, path: str | Path) -> None:
    """Write the logits to a safetensors file."""
    from safetensors.torch import save_file

    tensors = {name: getattr(shadows, name).float().contiguous() for name in KINDS}
    save_file({**tensors, "labels": shadows.labels.contiguous()}, str(path))


def load_shadows(path: str | Path | None, labels: Tensor) -> Shadows:
    """Read what ``save_shadows`` wrote.

    Args:
        path: of the file.
        labels: (samples,) of the forget set under audit.

    Raises:
        Missing: no path was given.
        DataError: the file is not there, or is about another forget set.
    """
    if path is None:
        raise Missing(
            "needs outputs of shadow models: pass shadows='file.safetensors', written by "
            "forgetkit.auditing.shadows.save_shadows"
        )
    if not Path(path).is_file():
        raise DataError(
            f"shadows={str(path)!r}: expected a safetensors file, found none; write one with "
            "forgetkit.auditing.shadows.save_shadows"
        )
    from safetensors.torch import load_file

    found = load_file(str(path))
    lacking = [name for name in (*KINDS, "labels") if name not in found]
    if lacking:
        raise DataError(
            f"shadows={str(path)!r}: expected the tensors {', '.join((*KINDS, 'labels'))}, found "
            f"none named {', '.join(lacking)}; write the file with save_shadows"
        )
    if not torch.equal(found["labels"], labels):
        raise DataError(
            f"shadows={str(path)!r}: expected the labels of the forget set under audit, found "
            f"those of another set of {len(found['labels'])} samples; collect the shadow models on "
            "this forget set, in its order"
        )
    return Shadows(found["seen"], found["unseen"], found["unlearned"], found["labels"])
