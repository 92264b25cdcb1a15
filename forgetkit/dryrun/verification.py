"""Checking on fresh inputs that head and features give the model's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetkit.dryrun.refusals import refusal

_EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}
_HALF = 1e-2
_LOOSER = 100  # other batch sizes take other kernels, so only rounding level is promised


def check_replay(features_logits: Tensor, logits: Tensor, tail: list[str]) -> None:
    """Compare the head on features with the logits of the same forward.

    Raises:
        CannotSplitModel: ``verify``.
    """
    error, scale = difference(features_logits, logits)
    if error > _EXACT.get(logits.dtype, _HALF) * scale:
        steps = ", ".join(tail) or "nothing"
        raise refusal(
            "verify",
            f"head(features(x)) should equal the model's logits, but they differ by {error:.2g} at "
            f"scale {scale:.2g}; after the head comes: {steps}. Likely causes are randomness or "
            "an in-place change of the features; pass head= with an earlier module.",
        )


def check_rows(replayed: Tensor, logits: Tensor, what: str) -> None:
    """Compare rows replayed in another batch.

    Raises:
        CannotSplitModel: ``batch-baked``.
    """
    error, scale = difference(replayed, logits)
    if error > min(0.2, _LOOSER * _EXACT.get(logits.dtype, _HALF)) * scale:
        raise refusal(
            "batch-baked",
            f"the head should give each sample the same logits in any batch, but {what} changes "
            f"them by {error:.2g} at scale {scale:.2g}. Pass head= with a module that contains the "
            "step that mixes samples.",
        )


def check_repeat(again: Tensor, logits: Tensor) -> None:
    """Compare two forward passes of one sample.

    Raises:
        CannotSplitModel: ``random``.
    """
    error, scale = difference(again, logits)
    if error > min(0.2, 10 * _LOOSER * _EXACT.get(logits.dtype, _HALF)) * scale:
        raise refusal(
            "random",
            f"the model in eval mode should give one sample the same logits each time, but they "
            f"differ by {error:.2g} at scale {scale:.2g}: it draws random numbers (Monte Carlo "
            "dropout) or mixes the samples of a batch, so its features cannot be kept. Switch "
            "that off, or use a method that trains the whole network.",
        )


def difference(left: Tensor, right: Tensor) -> tuple[float, float]:
    """Return (largest difference, largest magnitude); equal infinities and NaNs do not differ."""
    if left.shape != right.shape:
        return float("inf"), 1.0
    left, right = left.detach().double(), right.detach().to(left.device).double()
    same = (left == right) | (left.isnan() & right.isnan())
    gap = torch.where(same, torch.zeros_like(left), (left - right).abs())
    finite = right[right.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    worst = float(gap.max()) if gap.numel() else 0.0
    return (float("inf") if worst != worst else worst), scale
