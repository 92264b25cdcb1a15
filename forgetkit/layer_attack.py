"""The sign attack of LAU on the features of D_f, or on its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from forgetkit.attacks import LogitsFunction, affine_sign_attack, projection, sign_attack
from forgetkit.losses import blocked_classes
from forgetkit.moving import sent
from forgetkit.view import effective_affine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forgetkit.engine.run import Run
    from forgetkit.types import SampleSet


@dataclass(frozen=True)
class LayerAttack:
    """A <- A + epsilon sign(grad_A CE(z(A), y)), n times, never towards a forgotten class.

    Source: Kim, Lee, Woo, "Layer Attack Unlearning", AAAI 2024, arXiv:2312.16823, Eq. 4
        (Partial-PGD) and Table 3 (the whole network).

    Args:
        step: length of a step per coordinate; epsilon.
        steps: number of steps; n.
        radius: L-infinity ball around the start, if any.
        clamp: range of attacked features or pixels, if any.
    """

    step: float
    steps: int
    radius: float | None
    clamp: tuple[float, float] | None

    def on_features(self, run: Run) -> Tensor:
        """Return the head's logits of attacked features, (N, K).

        In closed form for an affine head, by autograd for any other.
        """
        affine = effective_affine(run.view) if run.view.linear else None
        logits = []
        for features, labels, blocked in _batches(run, run.forget, run.forget.at_once):
            if affine is None:
                attacked = self._through(run.head, features, labels, blocked)
            else:
                features = features.to(affine[0].dtype)
                flat = rearrange(features, "batch ... -> batch (...)")
                attacked = affine_sign_attack(
                    flat,
                    *affine,
                    labels,
                    blocked,
                    step=self.step,
                    steps=self.steps,
                    project=projection(flat, self.radius, self.clamp),
                ).view_as(features)
            logits.append(run.head(attacked))
        return torch.cat(logits)

    def on_images(self, run: Run) -> Tensor:
        """Return the whole network's logits of attacked images, (N, K)."""
        logits = []
        for images, labels, blocked in _batches(run, run.images.forget):
            attacked = self._through(run.logits_from_inputs, images, labels, blocked)
            logits.append(run.logits_from_inputs(attacked).float())
        return torch.cat(logits)

    def _through(
        self, logits_of: LogitsFunction, start: Tensor, labels: Tensor, blocked: Tensor
    ) -> Tensor:
        return sign_attack(
            start,
            logits_of,
            labels,
            step=self.step,
            steps=self.steps,
            project=projection(start, self.radius, self.clamp),
            blocked=blocked,
        )


def _batches(
    run: Run, samples: SampleSet, size: int | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield what is attacked, the labels to leave, and the classes not to reach, on the device."""
    for rows in samples.batches(size):
        if not isinstance(rows.inputs, Tensor):
            raise TypeError("attack='full' needs images as one tensor; use attack='partial'")
        labels = sent(rows.labels, run.device)
        blocked = blocked_classes(labels, run.forget_classes, run.num_classes)
        yield sent(rows.inputs, run.device), labels, blocked
