"""Boundary Shrink: relabel each forget sample with the class across its nearest boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forgetkit.attacks import projection, sign_attack
from forgetkit.fields import bounded, pixel_interval
from forgetkit.losses import blocked_classes, cross_entropy
from forgetkit.method import Card, Pair, State, register
from forgetkit.moving import sent
from forgetkit.pixels import PixelRange, pixel_range, pixels_of, with_pixels
from forgetkit.recipe import FullNetwork, StopsEarly
from forgetkit.types import Batch, PixelBounds, Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(FullNetwork, StopsEarly):
    """Train forget samples towards the class that a sign attack on them reaches.

        x' = clamp(x + epsilon sign(grad_x CE(z(x), y))),  y' = argmax z(x')
        L = CE(z(x), y') over D_f

    y' is computed once, with the weights that come in. Where the attack fails (y' is the own or a
    forgotten class) epsilon is doubled ``retry`` times; what still fails gets the best other class
    of z(x), counted in ``result.history`` as ``fallback_labels``.

    Source: Chen, Gao, Liu, Peng, Wang, "Boundary Unlearning", CVPR 2023, Section 3.3,
        https://github.com/TY-LEE-KR/Boundary-Unlearning-Code.

    Differences: the code leaves samples whose attack failed their own label, which teaches it
        again. The step is measured with every channel scaled to [0, 1], whatever the
        normalisation. Normalisation statistics are frozen.
    """

    card: ClassVar[Card] = Card(
        slug="boundary_shrink",
        title="Boundary Shrink",
        goals=("classes", "instances"),
        needs=("forget",),
        edits="all",
        steps="forget",
        cost="attack_steps FB over D_f, then at most 10 FB over D_f",
        source="Chen, Gao, Liu, Peng, Wang 2023, CVPR",
        link="https://openaccess.thecvf.com/content/CVPR2023/html/"
        "Chen_Boundary_Unlearning_Rapid_Forgetting_of_Deep_Networks_via_Shifting_the_"
        "CVPR_2023_paper.html",
        about="Gives each forget sample the label of the class across its nearest boundary.",
        keeps=0.30,
        toy={"lr": 0.01, "batch_size": 16, "epochs": 20, "check_every": 1},
        probe={
            "": {"lr": 1e-4},
            "attack_step": {"lr": 1e-4, "attack_step": 0.4},
            "attack_steps": {"lr": 1e-4, "attack_step": 0.8},
            "retry": {"lr": 1e-4, "attack_step": 0.04, "attack_steps": 30},
            "check_every": {"lr": 0.02, "batch_size": 2},
        },
    )

    attack_step: float = bounded(
        0.1,
        0.0,
        10.0,
        "L-infinity radius of the attack, channels scaled to [0, 1]; epsilon",
    )
    attack_steps: int = bounded(
        1, 1, 1000, "attack steps: one of length epsilon, or several of epsilon / 5"
    )
    retry: int = bounded(0, 0, 20, "how often epsilon is doubled for samples whose attack failed")
    bounds: PixelBounds | None = pixel_interval(
        "range of valid pixels, in the units of the model's inputs; None takes the smallest and "
        "largest value of each channel of D_f"
    )
    epochs: int = bounded(10, 1, 1000, "largest number of passes over D_f")
    lr: float | None = bounded(1e-5, 0.0, 10.0, "step size of the optimiser")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")

    def setup(self, run: Run) -> State:
        """Return the label across the boundary for each forget sample, (N_f,)."""
        images = (pixels_of(batch.inputs)[1] for batch in run.forget.batches())
        span = pixel_range(self.bounds, images, run.log)
        found = torch.empty(len(run.forget), dtype=torch.long)
        fallbacks = 0
        for batch in run.forget.batches():
            labels, failed = self.crossed(batch, run, span)
            found[batch.index] = labels.cpu()
            fallbacks += int(failed.sum())
        run.log(
            f"attack: {fallbacks} of {len(found)} samples stay on their side of the boundary and "
            f"get the best other class; pixels stay in {span.describe()}"
        )
        run.count("fallback_labels", fallbacks)
        return {"labels": found}

    def crossed(self, batch: Batch, run: Run, span: PixelRange) -> tuple[Tensor, Tensor]:
        """Return the labels across the boundary and where the attack failed, both (batch,)."""
        labels = sent(batch.labels, run.device)
        blocked = blocked_classes(labels, run.forget_classes, run.num_classes)
        start = span.to_unit(sent(pixels_of(batch.inputs)[1], run.device).float())
        every = torch.arange(len(labels))
        weights = {name: parameter.detach() for name, parameter in run.parameters.items()}

        def logits_of(unit: Tensor) -> Tensor:
            inputs = with_pixels(batch.inputs, span.from_unit(unit), every)
            return run.functional_logits(weights, inputs).float()

        best = logits_of(start).masked_fill(blocked, -torch.inf).argmax(dim=1)
        failed = torch.ones_like(labels, dtype=torch.bool)
        for doubling in range(self.retry + 1):
            if not failed.any():
                break
            size = self.attack_step * 2**doubling
            moved = sign_attack(
                start,
                logits_of,
                labels,
                step=size if self.attack_steps == 1 else size / 5,
                steps=self.attack_steps,
                project=projection(start, size, (0.0, 1.0)),
            )
            reached = logits_of(moved).argmax(dim=1)
            away = failed & ~blocked.gather(1, reached[:, None])[:, 0]
            best[away] = reached[away]
            failed &= ~away
        return best, failed

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the cross-entropy of clean samples to the labels across the boundary."""
        forget = batch.forget
        if forget is None:
            raise TypeError("boundary_shrink steps over the forget set")
        logits = run.logits(forget)
        labels = sent(run.state["labels"][forget.index.cpu()], logits.device)
        return {"forget": cross_entropy(logits, labels)}
