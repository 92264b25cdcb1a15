"""Which entries of which parameters a run may move."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from forgetkit.engine.run import Run
from forgetkit.losses import cross_entropy
from forgetkit.moving import sent
from forgetkit.recipe import Trained
from forgetkit.saliency import saliency_masks


def element_masks(method: Trained, run: Run) -> dict[str, Tensor]:
    """Return 0/1 tensors by parameter name: the method's own times the ``mask`` modifier's.

    Parameters that are not named may move as a whole.
    """
    masks = dict(method.movable(run))
    if method.mask is None:
        return masks
    with run.eval_mode():
        gradients = forget_gradients(run)
    for name, salient in saliency_masks(gradients, method.mask).items():
        masks[name] = salient * masks[name].to(salient.device) if name in masks else salient
    return masks


def forget_gradients(run: Run) -> Mapping[str, Tensor]:
    """Return the gradient of the mean cross-entropy over D_f for each trained parameter.

    It is one sum over all samples, so it does not depend on how they are batched.

    Source: Fan et al., "SalUn", ICLR 2024, Eq. 3.
    """
    trained = {name: p for name, p in run.parameters.items() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in trained.items()}
    for batch in run.forget.batches():
        with torch.enable_grad():
            labels = sent(batch.labels, run.device)
            loss = cross_entropy(run.logits(batch), labels) * (len(labels) / len(run.forget))
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                total += gradient
    return sums
