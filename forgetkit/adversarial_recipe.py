"""What ADV and ADV+IMP share: hyper-parameters, the adversarial set, the two terms of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from forgetkit.adversarial import MOST_PER_SAMPLE, adversarial_set, attack_cost, joint_weights
from forgetkit.fields import bounded, choice, pixel_interval
from forgetkit.losses import blocked_classes, cross_entropy, per_sample_loss, predictions
from forgetkit.method import Facts, GoalKind, Pair, Pass, State
from forgetkit.moving import sent
from forgetkit.pixels import gathered, packed, pixel_range, pixels_of, unpacked
from forgetkit.recipe import Ascends, FullNetwork, StopsEarly
from forgetkit.relabelling import reject_contradictions
from forgetkit.types import Batch, PixelBounds, Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

MANY = 200
"""Adversarial images a sample in the authors' scripts for many classes, which make 100 rounds."""

SEVERAL = 4
"""Single samples a batch from which on they are normalised by it: few have no statistics."""


def most_rounds(adversaries: int) -> int:
    """Return after how many rounds over D_adv a run ends.

    The authors' scripts make 100 rounds over 200 adversarial images a sample and 1 000 over 20, so
    that a sample takes part in as many steps.

    Args:
        adversaries: N_adv, images a sample; 0 for none.
    """
    return 100 * MANY // min(max(adversaries, MANY // 10), MANY) if adversaries else 100


@dataclass(frozen=True, kw_only=True)
class AgainstAdversaries(Ascends, FullNetwork, StopsEarly):
    """Forget while images that an attack made from D_f keep the labels it pushed them to.

        L = w_f L_UL over D_f + w_a CE(z, target) over D_adv
        L_UL = -CE(z, y), or CE(z, y*) for a relabel goal

    An epoch is a round over D_adv, D_f is restarted as often as needed. The run stops when all of
    D_f is predicted otherwise than before (has its new labels), whatever validation data say.

    Attributes:
        added: the goals for which the terms are added as they are by default, not by their samples.
    """

    to_zero: ClassVar[bool] = True
    added: ClassVar[tuple[GoalKind, ...]] = ("instances",)

    adversaries: int | None = bounded(
        None, 0, MOST_PER_SAMPLE - 1, "adversarial images per sample; N_adv; None: min(200, 2 K)"
    )
    attack_radius: float = bounded(
        4.0, 0.0, 1e4, "L2 ball of the attack, with every channel scaled to [0, 1]; rho"
    )
    attack_step: float = bounded(0.1, 0.0, 1e4, "L2 length of an attack step; a")
    attack_steps: int = bounded(100, 0, 10000, "number of attack steps; n")
    bounds: PixelBounds | None = pixel_interval(
        "range of valid pixels, in the units of the model's inputs, for all channels or for each; "
        "None takes the smallest and largest value of each channel of D_f; rho is in units of it"
    )
    balance: str | None = choice(
        None,
        ("size", "sum"),
        "weigh the two terms by their samples in the step, or by 1 and 1 as the paper prints; None "
        "takes 1 and 1 for single samples, with the pull of adv_imp for labels, too",
    )
    forget_batch_size: int = bounded(32, 1, 65536, "forget samples a step")
    batch_size: int | None = bounded(256, 1, 65536, "adversarial samples a step")
    epochs: int = bounded(
        0, 0, 1000, "largest number of rounds over D_adv; 0: 20 000 / N_adv, from 100 to 1 000"
    )
    lr: float | None = bounded(0.001, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(1e-5, 0.0, 1.0, "L2 penalty inside the optimiser")
    bn: str | None = choice(
        None,
        ("frozen", "train"),
        "running statistics of normalisation layers: frozen, or batch statistics and updates; None "
        f"takes batch statistics for {SEVERAL} single samples a batch and more beside D_adv, else "
        "frozen",
    )
    check_every: int | None = bounded(1, 1, 100000, "steps between checks of the forget accuracy")
    forgotten: str | None = choice(
        None,
        ("push", "rest"),
        "samples of D_f that are done (eval mode no longer reads their label, for a relabel goal "
        "reads the new one): push them on, or let them rest for as long as that holds, which keeps "
        "more and may leave a few undone; ``cap`` has no effect then; None lets them rest beside "
        "D_adv, but pushes classes on",
    )

    def tuned(self, facts: Facts) -> Self:
        """Fill in the number of adversarial images, min(200, 2 K) for K classes, and of rounds.

        How the terms weigh, what becomes of samples that are done and what normalises them depends
        on the goal. Without D_adv they are pushed on, so that what is left is NegGrad or CORRECT.
        """
        count = self.adversaries
        if count is None:
            count = min(MANY, 2 * facts.num_classes)
        together = min(facts.forget_size, self.forget_batch_size, self.batch_size or SEVERAL)
        several = facts.goal == "instances" and together >= SEVERAL and count
        done = self.forgotten
        if done is None:
            done = "rest" if facts.goal != "classes" and count else "push"
        return replace(
            self,
            adversaries=count,
            epochs=self.epochs or most_rounds(count),
            forgotten=done,
            bn=self.bn or ("train" if several else "frozen"),
            balance=self.balance or ("sum" if facts.goal in self.added else "size"),
        )

    def further_passes(self, facts: Facts) -> float:
        """Return those over D_adv, and over D_f beyond one a round: restarts, readings, checks."""
        rows = facts.forget_size
        made = (self.adversaries or 0) * rows
        if not made:
            return 0.0
        steps = math.ceil(made / (self.batch_size or made))
        seen = steps * rows / math.ceil(rows / self.forget_batch_size)
        looks = (steps - 1) // (self.check_every or steps)
        read = seen / 3 if self.forgotten == "rest" else 0.0
        again = max(seen - rows, 0) + looks * rows / 3
        return self.epochs * (made + again + read)

    def setup(self, run: Run) -> State:
        """Make D_adv with the weights as they are: all pairs of image and target at once."""
        wanted = run.forget.new_labels
        if wanted is not None:
            reject_contradictions(run.forget, wanted)
        count = self.adversaries or 0
        if count == 0:
            return {}
        _announce_cost(run, attack_cost(len(run.forget), count, self.attack_steps))
        forget = gathered(batch.inputs for batch in run.forget.batches())
        span = pixel_range(self.bounds, [pixels_of(forget)[1]], run.log)
        weights = {name: parameter.detach() for name, parameter in run.parameters.items()}
        made = adversarial_set(
            forget,
            run.forget.positions,
            blocked_classes(run.forget.labels, run.forget_classes, run.num_classes),
            lambda inputs: run.functional_logits(weights, inputs),
            run.uniform,
            span,
            per_sample=count,
            radius=self.attack_radius,
            step=self.attack_step,
            steps=self.attack_steps,
            device=run.device,
        )
        run.log(
            f"attack: {100 * made.reached:.1f} % of {len(made.targets)} adversarial images are "
            f"read as their target; pixels stay in {span.describe()}"
        )
        run.count("attack_success", made.reached)
        return {"targets": made.targets, **packed(made.inputs(forget))}

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return one round over D_adv beside D_f, or one over D_f when there is no D_adv."""
        if "targets" not in run.state:
            return (Pass("forget", batch_size=self.forget_batch_size),)
        targets = run.state["targets"]
        adversaries = run.stored(unpacked(run.state), targets)
        return (
            Pass(
                "both",
                retain=adversaries,
                once="retain",
                batch_size=self.batch_size or run.forget.batch_size,
                other_batch_size=self.forget_batch_size,
            ),
        )

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return both terms, weighted by their shares of the joint batch."""
        if self.balance is None:
            raise TypeError(f"{self.card.slug} runs with the balance that tuned() filled in")
        forget, adversarial = batch.forget, batch.retain
        forget_weight, adversarial_weight = joint_weights(
            _size(forget), _size(adversarial), self.balance
        )
        terms: dict[str, Tensor] = {}
        if forget is not None:
            terms["forget"] = forget_weight * self.unlearning(forget, run)
        if adversarial is not None:
            logits = run.logits(adversarial)
            terms["retain_adversarial"] = adversarial_weight * cross_entropy(
                logits, adversarial.labels
            )
        return terms

    def unlearning(self, forget: Batch, run: Run) -> Tensor:
        """Return L_UL: minus the loss at the old labels, or the loss at the new ones."""
        wanted = run.forget.new_labels
        rests = self.forgotten == "rest"
        if wanted is None and not rests:
            return self.ascent(forget, run)
        read = self._read(forget, run) if rests else None
        logits = run.logits(forget)
        labels = forget.labels if wanted is None else wanted[forget.index.cpu()]
        labels = sent(labels, logits.device)
        if read is None:
            return cross_entropy(logits, labels)
        left = (read == labels) if wanted is None else (read != labels)
        run.tally("at_rest", (~left).sum())
        # the mean is over the whole batch, so that its parts add up
        loss = (per_sample_loss(logits, labels) * left).sum() / max(len(labels), 1)
        return -loss if wanted is None else loss

    @torch.no_grad()
    def _read(self, forget: Batch, run: Run) -> Tensor:
        """Return the class each sample is read as, (batch,), by the weights that the checks see."""
        with run.eval_mode(), run.own_precision():
            return predictions(run.logits(forget))


def _announce_cost(run: Run, cost: int) -> None:
    retain = run.images.retain
    known = 0 if retain is None else len(retain) + len(run.forget)
    compared = f", as many as {cost / known:.1f} epochs over all {known} samples" if known else ""
    run.log(f"attack: {cost} samples go forward and backward before the first step{compared}")


def _size(batch: Batch | None) -> int:
    return 0 if batch is None else batch.total
