"""Class forgetting by projecting activations: one closed-form edit of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forgetkit.fields import bounded, choice, flag
from forgetkit.layer_survey import survey
from forgetkit.method import Card, Method, register
from forgetkit.moment_measuring import WIDEST, total, within
from forgetkit.projection import Removal, eigen
from forgetkit.types import SampleSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forgetkit.engine.run import Run
    from forgetkit.layer_survey import Layer

RETAIN_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FORGET_SCALES = (0.25, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)

SAMPLES = 900
"""Retained samples, as in the paper, and as many of the forgotten classes."""


@register
@dataclass(frozen=True, kw_only=True)
class SVDProjection(Method):
    """Remove, in every layer, the input directions that the class uses and the others do not.

    With X_r, X_f the inputs of a layer (patches of a convolution) on a few samples of D_r and D_f,
    U the eigenvectors of X^T X and s its eigenvalues as shares of their sum:

        M = U diag(a s_i / ((a - 1) s_i + 1)) U^T,   P = I - (M_f - M_f M_r),   W <- W P^T

    so the layer sees x - (I - M_r) M_f x. The scales a_r and a_f are those of a grid with the
    highest acc_r (1 - acc_f) on the same samples; the model as it came in is a candidate too. A
    grouped convolution has one P a group.

    Source: Kodge, Saha, Roy, "Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting",
        TMLR 2024, arXiv:2312.00761, Algorithms 1-2; code sangamesh-kodge/class_forgetting.

    Differences: eigenvalues of sums over all patches instead of singular values of some of them.
        Statistics of all layers are those of the original model, as in the paper, though a layer
        then sees other inputs than were measured; with ``sequential=True`` each layer is measured
        when all before it have been edited. Layers with rows longer than ``max_dim`` stay as they
        are, which a note says.
    """

    card: ClassVar[Card] = Card(
        slug="svd_projection",
        title="SVD projection (gradient-free class forgetting)",
        goals=("classes",),
        needs=("forget", "retain"),
        edits="all",
        steps="none",
        cost="1 F over the samples, an eigenvalue problem a layer, 63 F over the samples (grid)",
        source="Kodge, Saha, Roy 2024, TMLR",
        link="https://arxiv.org/abs/2312.00761",
        about="Projects out of every layer what only the class uses; no gradients.",
        probe={
            "": {"samples_per_class": 10, "retain_scale": 30.0, "forget_scale": 3.0},
            "max_dim": {
                "samples_per_class": 10,
                "retain_scale": 30.0,
                "forget_scale": 3.0,
                "max_dim": 15,
            },
            "max_dim/vit": {
                "samples_per_class": 10,
                "retain_scale": 30.0,
                "forget_scale": 3.0,
                "max_dim": 31,
            },
        },
    )

    retain_scale: float | None = bounded(
        None, 1e-3, 1e9, "how fully retained directions are protected; alpha_r; None searches"
    )
    forget_scale: float | None = bounded(
        None, 1e-3, 1e9, "how fully the class's directions are removed; alpha_f; None searches"
    )
    samples_per_class: int | None = bounded(
        None,
        1,
        100000,
        "samples of each retained class, and as many of the forgotten ones as of all of these; "
        "None takes as many as give 900 in all",
        optional=True,
    )
    positions: str = choice(
        "all", ("auto", "all"), "rows that an image gives to the statistics: few enough, or all"
    )
    max_dim: int = bounded(
        WIDEST, 1, 1000000, "longest row of a layer that is edited; time grows with its cube"
    )
    sequential: bool = flag(
        default=False,
        about="measure each layer on the network edited so far: 1 F over the samples for every "
        "layer and pair of scales",
    )

    def edit(self, run: Run) -> None:
        """Try every pair of scales, keep the best."""
        retain, forget = self._few(run)
        example = next(iter(retain.batches())).inputs
        used = survey(run.parameters, example, run.logits_from_inputs)
        layers = within(
            used,
            {name: len(run.parameters[name]) for name in used},
            positions=self.positions,
            max_dim=self.max_dim,
            images=min(len(retain), len(forget)),
        )
        wide = [name for name in used if name not in layers]
        if wide:
            run.log(
                f"svd_projection: {len(wide)} layers have rows longer than max_dim={self.max_dim} "
                f"and stay as they are: {', '.join(wide[:4])}"
            )
        pairs = [
            (a, b)
            for a in (RETAIN_SCALES if self.retain_scale is None else (self.retain_scale,))
            for b in (FORGET_SCALES if self.forget_scale is None else (self.forget_scale,))
        ]
        run.log(
            f"svd_projection: {len(layers)} layers, {len(pairs)} pairs of scales, {len(retain)} "
            f"retained and {len(forget)} forget samples"
        )
        before = {name: run.parameters[name].detach().clone() for name in layers}
        known = {} if self.sequential else _removals(run, layers, retain, forget)
        best, chosen = self._score(run, retain, forget), before
        scales: tuple[float, float] | None = None
        for pair in pairs:
            _write(run, before)
            edited: dict[str, Tensor] = {}
            for name, layer in layers.items():  # in the order of the forward pass
                removal = known.get(name) or _removals(run, {name: layer}, retain, forget)[name]
                edited[name] = removal.edited(*pair)
                if self.sequential:
                    _write(run, {name: edited[name]})
            _write(run, edited)
            score = self._score(run, retain, forget)
            if score > best:
                best, chosen, scales = score, edited, pair
        _write(run, chosen)
        if scales is None:
            run.log("svd_projection: no pair of scales did better than the model as it came in")
        else:
            run.log(f"svd_projection: retain_scale={scales[0]:g}, forget_scale={scales[1]:g}")

    @staticmethod
    def _score(run: Run, retain: SampleSet, forget: SampleSet) -> float:
        return run.accuracy(retain) * (1.0 - run.accuracy(forget))

    def _few(self, run: Run) -> tuple[SampleSet, SampleSet]:
        """Return a few samples of D_r and of D_f, lowest positions of each class first."""
        retain, forget = run.retain, run.forget
        wanted = self.samples_per_class or max(1, round(SAMPLES / len(retain.labels.unique())))
        rows = _lowest(retain, wanted)
        each = max(len(rows) // len(run.forget_classes), 1)
        return retain.take(rows), forget.take(_lowest(forget, each))


def _removals(
    run: Run, layers: Mapping[str, Layer], retain: SampleSet, forget: SampleSet
) -> dict[str, Removal]:
    """Decompose both sets' inputs of some layers, as the network is now."""
    kept, gone = (
        total(run.parameters, layers, (b.inputs for b in some.batches()), run.logits_from_inputs)
        for some in (retain, forget)
    )
    return {
        name: Removal(run.parameters[name], eigen(kept.sums[name]), eigen(gone.sums[name]))
        for name in layers
    }


def _lowest(samples: SampleSet, each: int) -> Tensor:
    rows = []
    for label in samples.labels.unique():
        own = (samples.labels == label).nonzero()[:, 0]
        rows.append(own[samples.positions[own].argsort()][:each])
    return torch.cat(rows)


def _write(run: Run, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        run.parameters[name].copy_(weight)
