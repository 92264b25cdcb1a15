"""SFRon: ascent on the weights that matter to the forget set, descent on the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from forgetkit.fields import bounded, choice
from forgetkit.importance import FORMS, measured
from forgetkit.losses import cross_entropy
from forgetkit.method import Card, Pair, Pass, State, register
from forgetkit.recipe import FullNetwork
from forgetkit.saliency import forget_saliency
from forgetkit.types import SampleSet, Terms
from forgetkit.weighted_ascent import weighted_ascent

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class SFRon(FullNetwork):
    """Every few iterations ascend on D_f, masked; in every iteration descend on D_r.

        m_j = 1 where F_f,j / F_r,j >= gamma,  F: diagonal of the Fisher matrix in batch form
        ascent:  L = -alpha_t mean w_i CE_i over D_f,  w_i ~ CE_i^-lambda, gradient times m
        descent: L = CE(z, y) over D_r;  alpha_t = alpha (1 + cos(pi t / T)) / 2, T iterations

    The batches of a set go through it in random order before one comes again. The gradient of an
    ascent is zero outside the mask and scaled down to ``ascent_norm``.

    Source: Huang et al., "Unified Gradient-Based Machine Unlearning with Remain Geometry
        Enhancement", NeurIPS 2024, arXiv:2409.19732;
        https://github.com/K1nght/Unified-Unlearning-w-Remain-Geometry.

    Differences: the averaging of weights in the authors' code has no effect (its rate is 1) and is
        left out; a loss below 1e-4 is raised to it before the power, and one above 2 log K + 5
        nats no longer counts (the history has how many, ``capped``, and how many ascents were
        scaled down, ``clipped_ascents``); normalisation statistics are frozen.
    """

    compares: ClassVar[bool] = True

    card: ClassVar[Card] = Card(
        slug="sfron",
        title="SFRon",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="both",
        cost="1 FB over D, then 1800 batches FB",
        source="Huang et al. 2024, NeurIPS",
        link="https://arxiv.org/abs/2409.19732",
        about="Alternates masked ascent on the forget set with descent on the retain set.",
        toy={"epochs": 2, "iterations": 30, "batch_size": 32},
        probe={"": {"iterations": 10}, "ascent_norm": {"iterations": 10, "ascent_norm": 0.1}},
        presets={
            "paper_swin": {
                "optimizer": "adamw",
                "lr": 2e-5,
                "weight_decay": 0.05,
                "iterations": 50,
                "ascent": 500.0,
                "every": 1,
            }
        },
    )

    iterations: int = bounded(150, 1, 1000000, "steps on D_r in an epoch")
    every: int = bounded(5, 1, 1000, "iterations from one ascent on D_f to the next")
    ascent: float = bounded(25.0, 0.0, 1e6, "weight of the ascent, decaying to 0; alpha")
    loss_power: float = bounded(0.5, 0.0, 10.0, "how much small losses weigh more; lambda")
    ratio: float = bounded(
        1.0, 0.0, 1e6, "least Fisher ratio of D_f to D_r where the ascent may move; gamma"
    )
    ascent_norm: float = bounded(7.0, 0.0, 1e6, "gradient norm that an ascent is scaled down to")
    fisher: str = choice(
        "batch", FORMS[::-1], "gradients squared by batch as in the paper, or by sample"
    )
    epochs: int = bounded(10, 1, 1000, "times the iterations; the accuracy is measured after each")
    lr: float | None = bounded(0.01, 0.0, 10.0, "step size of the optimiser")
    weight_decay: float = bounded(5e-4, 0.0, 1.0, "L2 penalty inside the optimiser")
    schedule: str = choice("cosine", ("constant", "cosine"), "how lr moves over the run")
    batch_size: int | None = bounded(128, 1, 65536, "samples a step")

    def setup(self, run: Run) -> State:
        """Return the mask of the ascent, boolean by parameter name."""
        own, kept = (
            measured(
                run.functional_logits,
                run.parameters,
                samples,
                form=self.fisher,
                batch_size=self.batch_size,
            ).values
            for samples in (run.forget, run.retain)
        )
        return forget_saliency(own, kept, self.ratio)

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return the ascents and descents of an epoch."""
        first, end = self.iterations * run.epoch, self.iterations * (run.epoch + 1)
        forget, retain = run.forget, run.retain
        forgotten, kept = _orders(run, forget, "forget"), _orders(run, retain, "retain")
        found: list[Pass] = []
        while first < end:
            if first % self.every == 0 and self.ascent > 0.0:
                number = first // self.every
                rows = self._rows(run, forget, forgotten, number, number + 1)
                found.append(
                    Pass("forget", "ascent", forget=rows, batch_size=len(rows), shuffle=False)
                )
            until = min(end, (first // self.every + 1) * self.every)
            rows = self._rows(run, retain, kept, first, until)
            size = len(rows) // (until - first)
            found.append(Pass("retain", "descent", retain=rows, batch_size=size, shuffle=False))
            first = until
        return found

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the weighted ascent on forget samples, or the descent on retained ones."""
        if batch.forget is not None:
            iteration = run.step // (self.every + 1) * self.every
            done = iteration / (self.epochs * self.iterations)
            decay = (1.0 + math.cos(math.pi * done)) / 2.0
            logits, labels = run.logits(batch.forget), batch.forget.labels
            ascent, beyond = weighted_ascent(logits, labels, self.loss_power)
            run.tally("capped", beyond)
            return {"forget": self.ascent * decay * ascent}
        if batch.retain is None:
            raise TypeError("sfron steps over the forget set or over the retain set")
        return {"retain": cross_entropy(run.logits(batch.retain), batch.retain.labels)}

    def gradients(self, run: Run) -> None:
        """Mask and clip the gradient of an ascent."""
        if run.phase != "ascent":
            return
        moved = [(p, run.state[n]) for n, p in run.parameters.items() if p.grad is not None]
        for parameter, mask in moved:
            if parameter.grad is not None:
                parameter.grad.mul_(mask.to(parameter.device))
        norm = nn.utils.clip_grad_norm_([parameter for parameter, _ in moved], self.ascent_norm)
        run.tally("clipped_ascents", (norm > self.ascent_norm) & norm.isfinite())

    def _rows(
        self, run: Run, samples: SampleSet, order: Callable[[int], Tensor], first: int, end: int
    ) -> SampleSet:
        """Return the samples of batches ``first`` to ``end``: one random order after another.

        The last batch of an order is left out when it is short; another order has other samples.
        """
        size = min(self.batch_size or samples.batch_size, len(samples))
        in_order = len(samples) // size
        rows = []
        for number in range(first, end):
            cycle, place = divmod(number, in_order)
            rows.append(order(cycle)[place * size : (place + 1) * size])
        return run.rows(samples, torch.cat(rows))


def _orders(run: Run, samples: SampleSet, name: str) -> Callable[[int], Tensor]:
    """Return what gives the rows of a set in the order of a cycle, drawn once."""

    @cache  # sorting a large set for every batch takes longer than the steps
    def order(cycle: int) -> Tensor:
        return run.uniform(f"sfron {name} {cycle}", samples.positions).argsort()

    return order
