"""LFSSD: selective synaptic dampening without a loss and without labels."""

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
class LFSSD(Method):
    """Shrink the weights that the logits of D_f depend on more than those of all samples D.

        I(S)_j = mean over S of |d ||z||^2 / d theta_j|
        theta_j <- theta_j min(1, lambda I(D)_j / I(D_f)_j)  where I(D_f)_j > alpha I(D)_j

    Labels are never read. D contains D_f, so that sample by sample a ratio never exceeds n / n_f,
    and an alpha above that selects nothing; a note says so.

    Source: Foster et al., "Loss-Free Machine Unlearning", 2024, arXiv:2402.19308, Eq. 3.

    Differences: the absolute gradient is taken by sample unless ``importance="batch"``; alpha was
        tuned for the batch form: 10 for classes of CIFAR-100 (``preset="paper"``), 5 for those of
        CIFAR-20 (``"paper_cifar20"``), 3.5 for random samples (``"paper_instances"``).
    """

    card: ClassVar[Card] = Card(
        slug="lfssd",
        title="Loss-Free Selective Synaptic Dampening",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="none",
        cost="1 FB over D_f and D_r",
        source="Foster et al. 2024, ICLR Tiny Papers",
        link="https://arxiv.org/abs/2402.19308",
        about="Dampens weights as SSD does, by how strongly the output depends on them.",
        multilabel=True,
        toy={"threshold": 1.5, "strength": 0.1},
        toy_vit={"threshold": 1.25},
        probe={"batch_size": {"importance": "batch"}},
        presets={
            "paper": {"importance": "batch", "batch_size": 64},
            "paper_cifar20": {"importance": "batch", "batch_size": 64, "threshold": 5.0},
            "paper_instances": {"importance": "batch", "batch_size": 64, "threshold": 3.5},
        },
    )

    threshold: float = bounded(
        10.0, 0.0, 1e6, "how much more a weight must matter to D_f than to D to shrink; alpha"
    )
    strength: float = bounded(1.0, 0.0, 1e6, "dampening constant, smaller shrinks more; lambda")
    importance: str = choice(
        "sample", FORMS, "absolute gradients by sample, or by batch as in the paper"
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
            kind="squared_norm",
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
        run.log(f"lfssd selected {count} of {total} weights to dampen")
        share = forget.samples / everything.samples
        if count == 0 and self.threshold * share >= 1.0:
            run.log(
                f"{self.card.slug}: no weight can matter {self.threshold:g} times more to D_f than "
                f"to D, of which D_f is a part of {share:.3f}; lower threshold or use assd"
            )
