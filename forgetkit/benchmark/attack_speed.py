"""Speed of making ADV's adversarial images: all pairs at once against one pair at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetkit import draws
from forgetkit.adversarial import AdversarialSet, adversarial_set
from forgetkit.benchmark.speed import in_turn
from forgetkit.losses import blocked_classes
from forgetkit.pixels import pixel_range
from forgetkit.types import Inputs


@dataclass(frozen=True)
class AttackSeconds:
    """What was measured.

    Args:
        together: median seconds for all pairs as one batch, cut by memory.
        one_by_one: median seconds for the same pairs one at a time.
        difference: largest difference of two pixels of the two results.
        same_targets: whether both have the same targets.
    """

    together: float
    one_by_one: float
    difference: float
    same_targets: bool

    @property
    def gain(self) -> float:
        """How many times faster all pairs at once are."""
        return self.one_by_one / self.together


def attack_speed(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    per_sample: int = 4,
    steps: int = 10,
    radius: float = 4.0,
    device: torch.device | str = "cpu",
    repeats: int = 3,
) -> AttackSeconds:
    """Measure in turn how long both ways take to make the same adversarial images.

    Args:
        model: takes (batch, channels, height, width) in [0, 1]; it is copied and left as it is.
        images: (samples, channels, height, width) in [0, 1].
        labels: (samples,) class indices.
        classes: width of the logits.
        per_sample: adversarial images per sample; N_adv.
        steps: attack steps; n.
        radius: L2 ball; rho.
        device: where both compute.
        repeats: measured calls of each, after one that is not.
    """
    place = torch.device(device)
    twin = copy.deepcopy(model).to(place).eval().requires_grad_(requires_grad=False)
    made: dict[int | None, AdversarialSet] = {}

    def logits_of(inputs: Inputs) -> Tensor:
        logits: Tensor = twin(inputs)
        return logits

    def making(at_once: int | None) -> Callable[[], object]:
        def call() -> None:
            made[at_once] = adversarial_set(
                images,
                torch.arange(len(images)),
                blocked_classes(labels, (), classes),
                logits_of,
                lambda purpose, positions: draws.uniform(0, purpose, positions),
                pixel_range((0.0, 1.0), []),
                per_sample=per_sample,
                radius=radius,
                step=0.1,
                steps=steps,
                device=place,
                at_once=at_once,
            )

        return call

    together, one_by_one = in_turn(making(None), making(1), repeats)
    first, second = made[None], made[1]
    return AttackSeconds(
        together,
        one_by_one,
        float((first.pixels - second.pixels).abs().max()),
        torch.equal(first.targets, second.targets),
    )


def attack_speed_on_small_models(repeats: int = 3) -> dict[str, AttackSeconds]:
    """Measure both toy models, CNN and ViT, on 16 images with eight adversarial ones each."""
    from forgetkit.testing import TOYS, toy

    found = {}
    for kind in TOYS:
        some = toy(kind)
        images, labels = (tensor[:16] for tensor in some.train.tensors)
        images = (images - images.min()) / (images.max() - images.min())
        found[kind] = attack_speed(
            some.model, images, labels, classes=4, per_sample=8, repeats=repeats
        )
    return found
