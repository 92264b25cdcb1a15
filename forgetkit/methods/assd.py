"""ASSD: selective synaptic dampening whose selection tunes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forgetkit.dampening import adaptive_threshold, dampen
from forgetkit.fields import artefact, bounded, choice
from forgetkit.importance import FORMS, of_forget_and_all
from forgetkit.method import Card, Method, Need, register

if TYPE_CHECKING:
    from forgetkit.engine.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class ASSD(Method):
    """Shrink the share of weights that the size of the forget set calls for.

        theta_j <- theta_j min(1, lambda I(D)_j / I(D_f)_j)  where I(D_f)_j / I(D)_j > alpha
        alpha = the percentile 100 - c ln(1 + 100 n_f / n) of all ratios,  c = 1, lambda = 1

    Importance is that of SSD. Nothing has to be tuned, so this is the form to begin with. The rule
    was found for small D_f; when whole classes of many samples stay known, raise ``selection``.

    Source: Schoepf, Foster, Brintrup, "Parameter-tuning-free data entry error unlearning with
        adaptive selective synaptic dampening", 2024, arXiv:2402.10098.

    Differences: gradients are squared by sample unless ``importance="batch"``; ``selection`` (c)
        and ``strength`` (lambda) are fixed at 1 in the paper.
    """

    card: ClassVar[Card] = Card(
        slug="assd",
        title="Adaptive Selective Synaptic Dampening",
        goals=("classes", "instances"),
        needs=("forget", "retain"),
        edits="all",
        steps="none",
        cost="1 FB over D_f and D_r",
        source="Schoepf, Foster, Brintrup 2024",
        link="https://arxiv.org/abs/2402.10098",
        about="Dampens weights as SSD does, with a threshold that follows the forget set's size.",
        multilabel=True,
        toy={"selection": 5.25, "strength": 0.05},
        probe={"batch_size": {"importance": "batch"}},
        presets={"paper": {"importance": "batch", "batch_size": 64}},
    )

    selection: float = bounded(
        1.0, 0.0, 20.0, "multiplies the share of weights that shrink; c, 1 in the paper"
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
        """Measure both importances, find the threshold and multiply the selected weights."""
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
        share = min(forget.samples / everything.samples, 1.0)
        threshold = adaptive_threshold(
            forget.values, everything.values, share, selection=self.selection
        )
        count = dampen(
            run.parameters,
            forget.values,
            everything.values,
            threshold=threshold,
            strength=self.strength,
        )
        total = sum(parameter.numel() for parameter in run.parameters.values())
        run.log(f"assd selected {count} of {total} weights to dampen (alpha = {threshold:.4g})")
