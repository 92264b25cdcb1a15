"""Checking on fresh inputs that head and features give the model's logits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from forgetkit.dryrun.refusals import refusal

_EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}
_HALF = 1e-2
_LOOSER = 100  # other batch sizes take other kernels, so only rounding level is promised


def exactness(dtypes: Iterable[torch.dtype]) -> float:
    """Return the relative error of the least precise floating type.

    Logits that are cast at the end are no more exact than what they were computed from.
    """
    floating = (dtype for dtype in dtypes if dtype.is_floating_point)
    return max((_EXACT.get(dtype, _HALF) for dtype in floating), default=_HALF)


def check_replay(features_logits: Tensor, logits: Tensor, tail: list[str], exact: float) -> None:
    """Compare the head on features with the logits of the same forward.

    Args:
        features_logits: what the head gives, (batch, classes).
        logits: what the model gives, (batch, classes).
        tail: what lies between, for the message.
        exact: relative error that is allowed, see `exactness`.

    Raises:
        CannotSplitModel: ``verify``.
    """
    error, scale = difference(features_logits, logits)
    if error > exact * scale:
        steps = ", ".join(tail) or "nothing"
        raise refusal(
            "verify",
            f"head(features(x)) should equal the model's logits, but they differ by {error:.2g} at "
            f"scale {scale:.2g}; after the head comes: {steps}. Likely causes are randomness or "
            "an in-place change of the features; pass head= with an earlier module.",
        )


def check_rows(replayed: Tensor, logits: Tensor, what: str, exact: float) -> None:
    """Compare rows replayed in another batch.

    Args:
        replayed: what the head gives for some rows, (batch, classes).
        logits: what the model gave for them, (batch, classes).
        what: how the batch was changed, for the message.
        exact: relative error of one computation, see `exactness`.

    Raises:
        CannotSplitModel: ``batch-baked``.
    """
    error, scale = difference(replayed, logits)
    if error > min(0.2, _LOOSER * exact) * scale:
        raise refusal(
            "batch-baked",
            f"the head should give each sample the same logits in any batch, but {what} changes "
            f"them by {error:.2g} at scale {scale:.2g}. Pass head= with a module that contains the "
            "step that mixes samples.",
        )


def check_repeat(again: Tensor, logits: Tensor, exact: float) -> None:
    """Compare two forward passes of one sample.

    Args:
        again: logits of the second, (batch, classes).
        logits: logits of the first, (batch, classes).
        exact: relative error of one computation, see `exactness`.

    Raises:
        CannotSplitModel: ``random``.
    """
    error, scale = difference(again, logits)
    if error > min(0.2, 10 * _LOOSER * exact) * scale:
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
