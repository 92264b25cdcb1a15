"""The rows of a linear head, one for each class, to be written by a closed form.

What cannot be written without changing more than the logits of these classes is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from forgetkit.errors import ModelError
from forgetkit.head_tail import bias_gains, same_for_every_class, uneven_step

if TYPE_CHECKING:
    from forgetkit.engine.run import Run
    from forgetkit.view import Affine


@dataclass(frozen=True)
class HeadRows:
    """The parameters of one affine layer of a head.

    Args:
        weight: of any shape, with the classes along ``axis``.
        bias: (classes,).
        axis: of ``weight``.
    """

    weight: Tensor
    bias: Tensor
    axis: int

    @property
    def flat(self) -> Tensor:
        """The weight as (classes, inputs); a copy where that is no view of it."""
        rows = self.weight.movedim(self.axis, 0)
        return rows.reshape(len(rows), -1)

    def write(self, weight: Tensor, bias: Tensor) -> None:
        """Write a weight (classes, inputs) and a bias (classes,)."""
        rows = self.weight.movedim(self.axis, 0)
        rows.copy_(weight.view_as(rows))
        self.bias.copy_(bias)


def writable_rows(run: Run, slug: str) -> list[HeadRows]:
    """Return the rows of every affine layer of the head.

    Args:
        run: with the split model.
        slug: of the method that asks.

    Raises:
        ModelError: the head is not affine with one row a class, has no bias, makes its weight of
            other tensors, or is partly frozen.
    """
    return [_rows(affine, run, slug) for affine in run.view.affines]


def _rows(affine: Affine, run: Run, slug: str) -> HeadRows:
    weight, bias = affine.weight, affine.bias
    if weight is None and run.view.linear:
        raise ModelError(_derived(affine, slug))
    rows = None if weight is None else weight.shape[affine.class_axis]
    if weight is None or rows != run.num_classes or not run.view.linear:
        raise ModelError(
            f"{slug}: expected an affine head with one row for each of {run.num_classes} classes, "
            f"found {affine.name} with {rows} rows"
            f"{'' if run.view.linear else ' and a non-linear end'}; use a trained method"
        )
    if bias is None:
        raise ModelError(
            f"{slug}: expected a head with a bias to mask the class with, found none at "
            f"{affine.name}; use lau, or {_how_to_give_a_bias(run)}"
        )
    free = {id(parameter) for parameter in run.parameters.values()}
    for name, tensor in (("weight", weight), ("bias", bias)):
        if id(tensor) not in free:
            found = "frozen" if isinstance(tensor, nn.Parameter) else "which is no parameter"
            raise ModelError(
                f"{slug}: expected a weight and a bias that may change, found the {name} of "
                f"{affine.name} {found}; make it a parameter with requires_grad_(True), or use a "
                "trained method such as lau"
            )
    return HeadRows(weight, bias, affine.class_axis)


def _derived(affine: Affine, slug: str) -> str:
    """Say that a weight is made of others at each call and cannot be written."""
    sources = [name for name in affine.parameters if not name.endswith("bias")]
    return (
        f"{slug}: expected a head whose weight is a parameter, found {affine.name} to make its own "
        f"from {', '.join(sources) or 'other tensors'}; fold that in first "
        "(torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
        "remove_spectral_norm or prune.remove, merge_and_unload() of PEFT), or use a trained method"
    )


def _how_to_give_a_bias(run: Run) -> str:
    if len(run.view.affines) > 1:
        return "merge the layers that the head adds up into one (merge_and_unload() of PEFT)"
    return "rebuild the head with a bias"


def reject_uneven_tail(run: Run, rows: Sequence[HeadRows], slug: str, *, masks_only: bool) -> None:
    """Refuse a head whose logits are not what its affine layers add up, but for a factor.

    Args:
        run: with the split model.
        rows: of its affine layers; back to their values on return.
        slug: of the method that asks.
        masks_only: whether it is enough that the bias of a forgotten class moves its logit.

    Raises:
        ModelError: what comes behind the layers shifts or scales the logits by class.
    """
    if not run.view.tail:
        return
    weights, biases = [one.weight for one in rows], [one.bias for one in rows]
    zeros = weights[0].new_zeros((1, *run.view.feature_shape))
    step = uneven_step(run.num_classes)
    if masks_only:
        step = torch.isin(torch.arange(run.num_classes), torch.tensor(run.forget_classes))
    rest, gains = bias_gains(lambda: run.head(zeros)[0], weights, biases, step)
    if masks_only:
        masked = step.to(rest.device)
        fits = all(float(one[masked].min()) > float(one[~masked].max()) for one in gains)
    else:
        fits = same_for_every_class(rest, gains, step)
    if fits:
        return
    wanted = (
        "a bias to raise the logit of its class"
        if masks_only
        else "logits that are what the last layer adds up, or one positive multiple of it"
    )
    raise ModelError(
        f"{slug}: expected {wanted}, found that what comes behind {run.view.head_name} "
        f"({', '.join(run.view.tail)}) changes them by class; fold it into the layer's weight and "
        "bias, or use a trained method such as lau"
    )
