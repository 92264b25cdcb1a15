"""What the two influence updates share: which weights move, and the gradient that samples leave."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from forgetkit.curvature import sum_of_gradients
from forgetkit.errors import ModelError
from forgetkit.fields import choice
from forgetkit.layers import layers
from forgetkit.method import Method
from forgetkit.per_sample import LogitsOf
from forgetkit.second_order import flat
from forgetkit.types import Batch

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

LAST_LINEAR = 3
"""Linear layers that the authors' code edits: their last six tensors."""

_PARAMETRISED = re.compile(r"(^|\.)parametrizations\..*$")


def correction(
    logits_of: LogitsOf,
    parameters: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    old: Tensor,
    new: Tensor | None,
) -> Tensor:
    """Return sum over D_f of grad l(x, new) - grad l(x, old), (P,); deletion has no first part.

    Args:
        logits_of: the model as a function.
        parameters: tensors to differentiate by, by name.
        batches: D_f, a list: it is read twice.
        old: (samples,) labels to take out.
        new: (samples,) labels to put in, or ``None``.
    """
    taken = flat(sum_of_gradients(logits_of, parameters, batches, labels=old))
    if new is None:
        return -taken
    return flat(sum_of_gradients(logits_of, parameters, batches, labels=new)) - taken


@dataclass(frozen=True, kw_only=True)
class Influence(Method):
    """A closed-form step on some layers."""

    layers: str = choice(
        "linear",
        ("head", "linear", "all"),
        "tensors that move: the head, it and the last linear layers (three in all), or every one",
    )

    def chosen(self, run: Run) -> dict[str, nn.Parameter]:
        """Return the parameters that move, by name.

        Raises:
            ModelError: none of them may be edited.
        """
        if self.layers == "all":
            return run.parameters
        few = run.forget.take(torch.arange(min(2, len(run.forget))))
        batch = next(iter(few.batches()))
        found = layers(run.model, lambda: run.logits(batch))
        modules = dict(run.model.named_modules())
        linear = [layer.name for layer in found if isinstance(modules[layer.name], nn.Linear)]
        names = {found[-1].name, *(linear[-LAST_LINEAR:] if self.layers == "linear" else ())}
        moving = {
            name: parameter for name, parameter in run.parameters.items() if _owner(name) in names
        }
        if not moving:
            raise ModelError(
                f"{self.card.slug}: expected trainable tensors in {', '.join(sorted(names))}, "
                "found none; unfreeze them or pass layers='all'"
            )
        run.log(f"{self.card.slug} moves {', '.join(moving)}")
        return moving


def _owner(name: str) -> str:
    """Return the path of the module that a parameter belongs to, parametrised or not."""
    return _PARAMETRISED.sub("", name.rpartition(".")[0])
