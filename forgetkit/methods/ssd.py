"""SSD: selective synaptic dampening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.dampening import dampen
from forgetkit.fields import artefact, bounded, choice
from forgetkit.importance import FORMS, of_forget_and_all
from forgetkit.method import Card, Method, Need, register

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class SSD(Method):
    """Shrink the weights that matter much more to D_f than to all training samples D.

        I(S)_j = mean over S of (d CE(z, y) / d theta_j)^2
        theta_j <- theta_j min(1, lambda I(D)_j / I(D_f)_j)  where I(D_f)_j > alpha I(D)_j

    No training: one pass over D_f and D. With ``importance_file``, the importance to D measured
    while the training data were at hand, samples to forget are enough. D contains D_f, so
    that sample by sample a ratio never exceeds n / n_f: with D_f a fifth of D, alpha = 10 selects
    nothing, and a note says so.

    Source: Foster, Schoepf, Brintrup, "Fast Machine Unlearning Without Retraining Through
        Selective Synaptic Dampening", AAAI 2024, arXiv:2308.07707, Eq. 5-6;
        https://github.com/if-loops/selective-synaptic-dampening.

    Differences: the authors square the gradient of a batch mean, which depends on batch size and
        order; here every sample's gradient is squared unless ``importance="batch"``. Their alpha
        was tuned for the batch form. In that form D is read as D_f and then D_r, batch by batch,
        as their loader does; a file has batches that mix both, and other ratios.
    """

    card: ClassVar[Card] = Card(
        slug="ssd",
        title="Selective Synaptic Dampening",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="none",
        cost="1 FB over D_f and D_r",
        source="Foster, Schoepf, Brintrup 2024, AAAI",
        link="https://arxiv.org/abs/2308.07707",
        about="Shrinks the weights that matter more to the forget set than to all samples.",
        multilabel=True,
        toy={"strength": 0.1, "threshold": 3.0},
        toy_vit={"threshold": 0.35},
        probe={"batch_size": {"importance": "batch"}},
        presets={
            "paper": {"importance": "batch", "batch_size": 64},
            "paper_vit": {"importance": "batch", "batch_size": 64, "threshold": 5.0},
            "paper_vit_subclass": {"importance": "batch", "batch_size": 64, "threshold": 25.0},
            "paper_faces": {
                "importance": "batch",
                "batch_size": 64,
                "threshold": 50.0,
                "strength": 0.1,
            },
        },
    )

    threshold: float = bounded(
        10.0, 0.0, 1e6, "how much more a weight must matter to D_f than to D to shrink; alpha"
    )
    strength: float = bounded(1.0, 0.0, 1e6, "dampening constant, smaller shrinks more; lambda")
    importance: str = choice(
        "sample", FORMS, "gradients squared by sample, or by batch as in the paper"
    )
    importance_file: str | None = artefact(
        "importance to all training samples, from importance_of(model, loader).save(path); "
        "D_r is then not needed"
    )
    batch_size: int | None = bounded(
        None, 1, 65536, "samples of a batch in batch form; None takes the loader's batch size"
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        """D_f, and D_r unless there is a file."""
        return ("forget", "retain") if self.importance_file is None else ("forget",)

    def edit(self, run: Run) -> None:
        """Measure both importances and multiply the selected weights."""
        forget, everything = of_forget_and_all(
            run.functional_logits,
            run.parameters,
            run.forget,
            run.retain if self.importance_file is None else None,
            kind="cross_entropy",
            form=self.importance,
            batch_size=self.batch_size,
            file=self.importance_file,
            model=run.model,
        )
        count = dampen(
            run.parameters,
            forget.values,
            everything.values,
            threshold=self.threshold,
            strength=self.strength,
        )
        total = sum(parameter.numel() for parameter in run.parameters.values())
        run.log(f"ssd selected {count} of {total} weights to dampen")
        share = forget.samples / everything.samples
        if count == 0 and self.threshold * share >= 1.0:
            run.log(
                f"{self.card.slug}: no weight can matter {self.threshold:g} times more to D_f than "
                f"to D, of which D_f is a part of {share:.3f}; lower threshold or use assd"
            )
