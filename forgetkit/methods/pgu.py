"""PGU: projected-gradient unlearning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import Self

from forgetkit.core_space import part, projections, protections, shares
from forgetkit.fields import artefact, bounded, choice, flag
from forgetkit.losses import membership
from forgetkit.masked_targets import entropy, log_rest
from forgetkit.method import Card, Facts, Need, Pair, Pass, Seen, State, register
from forgetkit.moment_measuring import WIDEST
from forgetkit.recipe import Trained
from forgetkit.retained import retained
from forgetkit.stopping import (
    begin_gap,
    begin_patience,
    is_closed,
    take_back,
    validation_gap,
    validation_patience,
)
from forgetkit.trust_region import fold, last_weight, logits_through, unfold, unscaled
from forgetkit.types import Terms

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from forgetkit.engine.run import Run

REGION = 400
"""Directions of the last layer that a depoisoning run rescales, as in the authors' code."""

PATIENCE = 20
"""Epochs without a better validation accuracy before a depoisoning run ends. The best is kept."""

MISMATCH = 1e-3
"""Part of the moments taken away that was not there, above which a note says so.

It is of what was taken away and not of the whole: few samples of many are noticed like many.
"""


@register
@dataclass(frozen=True, kw_only=True)
class PGU(Trained):
    """Descend a bounded loss on D_f, only along directions that retained inputs do not use.

    With C the second moments of a layer's inputs over D_r and M its leading eigenvectors, those
    with a share gamma of the spectrum, every gradient G of a weight is replaced:

        L = -log(1 - p_y + epsilon) - lambda H(p),   G <- G - G M M^T

    so the layer's output on retained inputs stays as it is. C is that of the whole training set,
    from a file of ``forgetkit.Statistics``, minus that of D_f; without a file it is computed on
    D_r. Step size eta_0 (eta_1 / eta_0)^(epoch / E). Only weights of convolutions and linear
    layers move, never biases or normalisation. Shares may differ by layer: with paths of modules,
    gamma={"layer4": 0.9, "fc": 0.8, "default": 0.95}.

    A class is done at chance level, 1 / classes. Single samples are done when they are predicted
    no better than validation samples of their classes were before the run; between the epochs on
    both sides of that moment the weights nearest to it are looked for. To depoison (the labels are
    wrong, the right ones unknown) the entropy H_-y of the other classes is lowered instead, and the
    last weight has a trust region: W_eff = W (I - M M^T) + W M Q M^T with Q trained along, folded
    into W.

    The default step size suits networks with normalisation. One of a few plain layers needs more:
    an MLP that knew 100 digits by heart still knew 99 after 100 epochs with it, and forgot what it
    had to within 4 to 12 with steps of 0.3 to 1.

    Source: Hoang, Rana, Gupta, Venkatesh, "Learn to Unlearn for Deep Neural Networks: Minimizing
        Unlearning Interference with Gradient Projection", WACV 2024, arXiv:2312.04095, Eq. 1-5;
        Lin et al., "TRGP", ICLR 2022, arXiv:2202.02931 (trust region).

    Differences: the share is one of the energy (eigenvalues of C), which leaves more room than the
        paper's share of their roots (``preset="paper"``); the printed sign of the entropy
        contradicts the text, which is followed; rows follow each layer's own stride and dropout is
        off (``preset="code"`` has patches at every place, and dropout in the passes that train; the
        authors' code has it on where it measures, too); negative eigenvalues count as 0. For
        classes the share is 0.9, which forgets more and costs less on a ResNet and a ViT than 0.95
        or shares of roots. To depoison lambda is 3, since 0.2 (``preset="depoison"``) recovered
        less (see the benchmarks), and an end by validation waits for 20 epochs. For single samples
        the gap is that of this request's D_f, not of all forgotten so far, to the accuracy on
        unseen samples of its classes before the run (of all classes at that moment in the paper),
        and what validation accuracy was lost since counts as gap, too. Other optimisers than SGD,
        and weight decay, have the weights' whole displacement projected. The authors' end when
        validation accuracy falls by five points is left out, the request's guard is there for that;
        so are their hundred epochs for classes, where nothing looks at what is forgotten (the
        presets end at chance, too), their look before the first epoch, their batch of 100 for
        classes, and "one direction fewer" for single samples and to depoison. The printed sum of
        Eq. 1 is a mean. Layers with rows longer than ``max_dim`` stay as they are, for which the
        authors, and the presets, have no limit. ``mask`` cuts single weights out of a projected
        gradient, or displacement, and so gives the protection up; of the trust region's W_eff the
        weights that it holds stay those of W.
    """

    card: ClassVar[Card] = Card(
        slug="pgu",
        title="Projected-gradient unlearning",
        goals=("classes", "instances", "depoison"),
        needs=("forget", "retain"),
        edits="all",
        steps="forget",
        cost="1 F over D_f (without saved statistics over D_r), an eigenvalue problem a layer, "
        "at most 100 FB over D_f",
        source="Hoang et al. 2024, WACV",
        link="https://arxiv.org/abs/2312.04095",
        about="Forgets only along directions that the retained data's layer inputs do not use.",
        keeps=0.15,
        rank={"classes": 1, "instances": 2, "depoison": 1},
        toy={"epochs": 30, "batch_size": 16, "lr": 0.2, "last_lr": 0.1, "positions": "all"},
        probe={
            "": {"lr": 0.02, "last_lr": 0.01},
            "target": {"epochs": 30, "lr": 0.05, "last_lr": 0.05},
            "trust_rate": {"trust_dim": 8},
            "gamma_step": {"lr": 0.02, "last_lr": 0.01, "gamma": 0.6, "requests": 1},
            "max_dim": {"lr": 0.02, "last_lr": 0.01, "max_dim": 15},
            "max_dim/vit": {"lr": 0.02, "last_lr": 0.01, "max_dim": 31},
            "requests": {"lr": 0.02, "last_lr": 0.01, "gamma": 0.6, "gamma_step": 0.1},
        },
        presets={
            "paper": {
                "spectrum": "sigma", "gamma": 0.9, "positions": "all", "entropy_weight": 0.2,
                "max_dim": 1000000,
            },
            "code": {
                "spectrum": "sigma", "gamma": 0.9, "lr": 0.1, "positions": "all",
                "dense_patches": True, "dropout": True, "entropy_weight": 0.2, "max_dim": 1000000,
            },
            "depoison": {
                "spectrum": "sigma", "gamma": 0.95, "lr": 0.1, "last_lr": 0.05,
                "positions": "all", "entropy_weight": 0.2, "max_dim": 1000000,
            },
        },
    )  # fmt: skip

    gamma: float | Mapping[str, float] | None = bounded(
        None,
        0.0,
        1.0,
        "protected share of the spectrum; gamma; 1 freezes a layer; None takes 0.95, or 0.9 for "
        "classes",
        by_layer=True,
    )
    gamma_step: float = bounded(
        0.0, 0.0, 1.0, "added to every share for each request served before, up to a share of 1"
    )
    requests: int | None = bounded(
        None, 0, 10**6, "requests served before this one; None is what the statistics count, or 0"
    )
    spectrum: str = choice(
        "energy", ("energy", "sigma"), "what the share is of: eigenvalues of C, or their roots"
    )
    entropy_weight: float | None = bounded(
        None, 0.0, 100.0, "weight of the entropy term; lambda; None takes 0.2, or 3 to depoison"
    )
    epsilon: float | None = bounded(
        None, 1e-6, 1.0, "keeps the loss bounded; epsilon; None takes 0.05, or 0.1 to depoison"
    )
    last_lr: float = bounded(0.01, 0.0, 10.0, "step size towards the last epoch; eta_1")
    target: float | None = bounded(
        None, 0.0, 1.0, "forget accuracy to stop at; None takes chance, or the validation accuracy"
    )
    trust_dim: int | None = bounded(
        None, 1, 65536, "directions in the trust region; None takes 400 to depoison, else none"
    )
    trust_rate: float = bounded(0.1, 0.0, 10.0, "step size of Q as a multiple of that of W")
    statistics: str | None = artefact(
        "file of forgetkit.Statistics over the whole training set; with it D_r is not needed"
    )
    positions: str | None = choice(
        None,
        ("auto", "all"),
        "rows that an image of D_r gives to the moments: few enough, or all; None takes all to "
        "depoison, else few enough",
    )
    max_dim: int = bounded(
        WIDEST, 1, 1000000, "longest row of a layer that may change, when D_r is measured"
    )
    dense_patches: bool = flag(
        default=False, about="measure patches at every place, whatever a convolution's stride"
    )
    dropout: bool = flag(default=False, about="leave dropout on in the passes that train")
    epochs: int = bounded(100, 1, 1000, "largest number of passes over D_f; E")
    lr: float | None = bounded(0.05, 0.0, 10.0, "step size in the first epoch; eta_0")
    momentum: float = bounded(0.0, 0.0, 0.999, "momentum of SGD, first beta of Adam")
    batch_size: int | None = bounded(128, 1, 65536, "samples a step")

    @property
    def needs(self) -> tuple[Need, ...]:
        """D_f alone with saved statistics."""
        return ("forget",) if self.statistics is not None else ("forget", "retain")

    @property
    def extra_rate(self) -> float:
        """The trust region's own step size."""
        return self.trust_rate

    def tuned(self, facts: Facts) -> Self:
        """Fill in what depends on the goal."""
        cleans = facts.goal == "depoison"
        epsilon = (0.1 if cleans else 0.05) if self.epsilon is None else self.epsilon
        region = REGION if cleans and self.trust_dim is None else self.trust_dim
        weight = (3.0 if cleans else 0.2) if self.entropy_weight is None else self.entropy_weight
        gamma = self.gamma
        if gamma is None:
            gamma = 0.9 if facts.goal == "classes" else 0.95
        rows = ("all" if cleans else "auto") if self.positions is None else self.positions
        return replace(
            self, epsilon=epsilon, trust_dim=region, entropy_weight=weight, gamma=gamma,
            positions=rows,
        )  # fmt: skip

    def setup(self, run: Run) -> State:
        """Return the projection of every measured weight, and the trust region's basis."""
        if self.gamma is None or self.positions is None:
            raise TypeError("pgu runs with the shares and the rows that tuned() filled in")
        kept = retained(
            run, self.statistics, self.positions,
            dense_patches=self.dense_patches, max_dim=self.max_dim,
        )  # fmt: skip
        served = kept.requests if self.requests is None else self.requests
        weights = run.parameters
        moments = {n: moment for n, moment in kept.moments.sums.items() if n in weights}
        state, negative = protections(
            weights,
            moments,
            shares(self.gamma, moments, self.gamma_step * served),
            spectrum=self.spectrum,
            floor=kept.floor,
            regions=self._regions(run, moments),
        )
        thin = kept.thinned(moments)
        if thin:
            run.log(
                f"pgu: what is protected in {len(thin)} of {len(moments)} layers was measured on "
                "some rows (patches, tokens) of each image; positions='all', of the method or of "
                "Statistics.collect, measures every row"
            )
        missing = kept.mismatch(negative)
        if missing > MISMATCH:
            run.log(_not_there(missing, kept.requests))
        still = [n for n, p in weights.items() if p.ndim > 1 and n not in moments]
        if still:
            run.log(
                f"pgu: {len(still)} weights without moments (not called, not multiplied by as they "
                "are, as under weight normalisation or pruning, or with rows longer than max_dim) "
                f"stay as they are: {still[:4]}"
            )
        return state | dict(self._rule(run))

    def _regions(self, run: Run, measured: Iterable[str]) -> dict[str, int]:
        """Return the size of the trust region by weight: of the last one, where it gives logits."""
        if self.trust_dim is None:
            return {}
        last = last_weight(run, measured)
        if last is None:
            return {}
        if len(run.parameters[last]) == run.num_classes:
            return {last: self.trust_dim}
        run.log(
            f"pgu: no trust region, because {last}, the last measured weight that may change, has "
            f"{len(run.parameters[last])} rows and not one for each of {run.num_classes} classes"
        )
        return {}

    def _rule(self, run: Run) -> State:
        """Return what the stop rule of the goal needs."""
        if run.validation is None or self.target is not None or run.goal.kind == "classes":
            return {}
        return begin_gap(run) if run.goal.kind == "instances" else begin_patience(run)

    def trained(self, run: Run) -> Collection[str]:
        """Return the weights whose inputs were measured."""
        return part(run.state, "start")

    def extra(self, run: Run) -> State:
        """Return Q = I of the trust region, if there is one."""
        return unscaled(run.state)

    def start_epoch(self, run: Run) -> State:
        """Take Q out of the weights again, where the last epoch folded it in for a look."""
        unfold(run)
        return run.state

    def passes(self, run: Run) -> Sequence[Pass]:
        """Return one pass over D_f, or none when there is nothing to forget."""
        return () if "gap" in run.state and is_closed(run) else (Pass("forget"),)

    def rate(self, run: Run) -> float:
        """Return eta_0 (eta_1 / eta_0)^(epoch / E)."""
        first = self.lr or 0.0
        return first * (self.last_lr / first) ** (run.epoch / self.epochs) if first else 0.0

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the bounded term and the entropy term, means over the batch."""
        if batch.forget is None:
            raise TypeError("pgu steps over the forget set")
        self._hold(run)
        logits, labels = logits_through(run, batch.forget), batch.forget.labels
        own, weight = membership(labels, run.num_classes), self.entropy_weight or 0.0
        reverse = -(log_rest(logits, own).exp() + (self.epsilon or 0.0)).log().mean()
        if run.goal.kind == "depoison":
            others = logits.float().masked_fill(own, -torch.inf)
            return {"forget": reverse, "entropy": weight * entropy(others).mean()}
        return {"forget": reverse, "entropy": -weight * entropy(logits).mean()}

    def gradients(self, run: Run) -> None:
        """Project every gradient."""
        for name, away in projections(run.state).items():
            gradient = run.parameters[name].grad
            if gradient is not None:
                gradient.copy_(away.of(gradient))

    @torch.no_grad()
    def _hold(self, run: Run) -> None:
        """Project the whole displacement, where a step is more than its projected gradient."""
        if self.optimizer == "sgd" and self.weight_decay == 0:
            return
        start = part(run.state, "start")
        for name, away in projections(run.state).items():
            weight = run.parameters[name]
            held = start[name] + away.of(weight - start[name])
            weight.copy_(run.within_mask(name, held, start[name]))

    def passed(self, run: Run) -> None:
        """Fold the trust region into the weight: what is measured now is what would be left."""
        self._hold(run)
        run.state = fold(run)

    def checked(self, seen: Seen, run: Run) -> str | None:
        """Stop at chance, at the target, or by the validation samples."""
        if "gap" in run.state:
            return validation_gap(run)
        if "best" in run.state:
            return validation_patience(run, PATIENCE)
        classes = run.goal.kind == "classes"
        target = 1.0 / run.num_classes if self.target is None and classes else self.target
        if target is None or seen.forget_accuracy > target:
            return None
        return (
            f"forget accuracy {100 * seen.forget_accuracy:.2f} % reached its target of "
            f"{100 * target:.2f} % after {run.step} steps"
        )

    def finish(self, run: Run) -> bool:
        """Put back the weights of an earlier epoch, where the stop rule preferred them."""
        return take_back(run)


def _not_there(missing: float, requests: int) -> str:
    """Say that what was taken out of the statistics was not in them, and what may be the cause."""
    found = (
        f"pgu: {100 * missing:.2g} % of what was taken out of the statistics is not in them (the "
        "rest has negative eigenvalues), "
    )
    if requests == 0:
        return found + (
            "so they were not made of these images with this model and this transform: what is "
            "protected is approximate; collect them anew"
        )
    return found + (
        f"because the model has changed since they were made ({requests} served before), or they "
        "were made of other images: what is protected is approximate; collect them anew when the "
        "training set is at hand"
    )
