"""Pure functions: which weights may move, from how strongly each one answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from forgetkit.errors import UnlearningFailed


def kept_count(share: float, total: int) -> int:
    """Return ceil(share * total), taking ``share`` as the decimal number that it is written as.

    In floating point 0.07 * 100 is 7.000000000000001, whose ceiling is 8.
    """
    return math.ceil(Fraction(str(float(share))) * total)


def saliency_masks(gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return 0/1 masks of the entries with the largest absolute values, in one global ranking.

    All entries of all tensors are ranked together. Exactly ceil(share P) of the P entries are
    selected; entries of equal size are taken by position: in the order of the mapping, then in
    that of the flattened tensor. Besides the masks the memory is one absolute value an entry and
    what one selection (``kthvalue``) needs.

    Args:
        gradients: tensor by name, any shapes; sum the gradients before, the absolute value is
            taken here.
        share: part of all entries to select, in [0, 1].

    Returns:
        Tensors of booleans with the names and shapes of ``gradients``, on their devices.

    Raises:
        UnlearningFailed: a gradient is not finite, so that there is no ranking.

    Source: Fan et al., "SalUn", ICLR 2024, arXiv:2310.12508, Eq. 3 (there with a threshold).
    """
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise UnlearningFailed(
                f"saliency: expected finite gradients, found NaN or infinity in {name}; check the "
                "images for NaN, or compute in float32"
            )
    total = sum(gradient.numel() for gradient in gradients.values())
    left = min(kept_count(share, total), total)
    if left <= 0 or left == total:
        return {
            name: torch.full_like(gradient, left > 0, dtype=torch.bool)
            for name, gradient in gradients.items()
        }
    sizes = torch.cat([g.detach().reshape(-1).abs() for g in gradients.values()])
    threshold = sizes.kthvalue(total - left + 1).values
    ties = left - int((sizes > threshold).sum())
    masks: dict[str, Tensor] = {}
    for (name, gradient), size in zip(
        gradients.items(), sizes.split([g.numel() for g in gradients.values()]), strict=True
    ):
        mask = size > threshold
        equal = (size == threshold).nonzero()[:, 0][:ties]
        mask[equal] = True
        ties -= len(equal)
        masks[name] = mask.reshape(gradient.shape)
    return masks


def forget_saliency(
    forget: Mapping[str, Tensor], retain: Mapping[str, Tensor], ratio: float
) -> dict[str, Tensor]:
    """Return where (F_f + 1e-15) / (F_r + 1e-15) >= gamma, boolean by name.

    Args:
        forget: diagonal of the Fisher matrix of D_f by name.
        retain: that of D_r.
        ratio: gamma.

    Source: Huang et al., NeurIPS 2024, arXiv:2409.19732, Section 4.
    """
    return {name: (own + 1e-15) / (retain[name] + 1e-15) >= ratio for name, own in forget.items()}
