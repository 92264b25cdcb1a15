"""GLI: fine-tuning on retained images that were led away from the forgotten ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forgetkit.batch_count import batches_in
from forgetkit.fields import bounded, choice, pixel_interval
from forgetkit.guided import DISTANCES, guided_images, objective, ramp, widened
from forgetkit.losses import accuracy, cross_entropy, per_sample_loss
from forgetkit.membership import FEWEST, final_score, forgetting_score
from forgetkit.method import Card, Pair, Pass, Seen, State, register
from forgetkit.moving import sent
from forgetkit.pixels import pixel_range, pixels_of, with_pixels
from forgetkit.recipe import FullNetwork
from forgetkit.types import PixelBounds, SampleSet, Terms

if TYPE_CHECKING:
    from forgetkit.engine.run import Run

_PUBLISHED = {"noise_steps": 2, "weight_start": 200.0, "weight_end": 1000.0, "bounds": (0.0, 1.0)}
_BEST = "best/"


@register
@dataclass(frozen=True, kw_only=True)
class GuidedLossIncreasing(FullNetwork):
    """Fine-tune on retained images whose noise leads their logits away from the forgotten ones.

        J = dist(f(x), f(x_f)) - w_b CE(f(x), y_r),  x = x_r + noise,  w_b linear in the batch b
        noise <- noise + a sign(dJ/d noise), s times;  then one step on L = CE(f(x), y_r)

    D_f is never trained on and its labels are not used: the retain task decides in which direction
    the loss on D_f may rise. Multi-label data take the binary cross-entropy instead of CE. Row i of
    a retain batch moves away from row i of a forget batch.

    With ``.validate(loader)`` every ``check_every`` batches the final score (accuracy and
    forgetting score, see ``forgetkit.membership``) is computed, the run ends after ``patience``
    checks without a better one, and the best state is put back. The validation samples serve
    twice: those at even places give the accuracy, those at odd places are the unseen samples of
    the forgetting score, so they must show nothing (no person, say) that D_f shows. Without
    validation data, or with fewer than 10 samples on a side, the run ends after ``max_batches``.

    Source: Choi et al., "Towards Efficient Machine Unlearning with Data Augmentation: Guided
        Loss-Increasing (GLI) to Prevent the Catastrophic Model Utility Drop", CVPR Workshops 2024,
        supplement and notebooks; ``"l2"`` is the squared distance, as in the code.

    Differences: the code selects the state on the test set, trains the first batch with moving
        batch statistics, and skips pairs of unequal length; here a shorter forget batch is
        repeated. The multi-label notebook drops the last noise step (preset ``"mucac"`` makes 5,
        it made 4). The noise step is a share of the range of each channel, the paper's for pixels
        in [0, 1]; the range is that of the images seen, unless ``bounds`` names it.
    """

    compares: ClassVar[bool] = True

    heeds_forget_accuracy: ClassVar[bool] = False

    card: ClassVar[Card] = Card(
        slug="gli",
        title="Guided Loss-Increasing",
        goals=("instances",),
        needs=("forget", "retain"),
        edits="all",
        steps="both",
        cost="(s + 1) FB over at most 40 batches of D_r, 1 F over as many of D_f",
        source="Choi et al. 2024, CVPR Workshops",
        link="https://github.com/Dasol-Choi/Guided_Loss_Increasing",
        about="Fine-tunes on retained images pushed away from the forgotten ones.",
        multilabel=True,
        toy={
            "noise_steps": 3, "noise_step": 0.05, "weight_start": 1.0, "weight_end": 1.0,
            "lr": 0.1, "batch_size": 16, "max_batches": 6,
        },
        probe={
            "check_every": {"validate": True, "noise_step": 0.02, "check_every": 1},
            "patience": {"validate": True, "noise_step": 0.02, "patience": 1},
        },
        presets={
            "paper": _PUBLISHED,
            "code": {**_PUBLISHED, "check_every": 1, "patience": 3},
            "mucac": {**_PUBLISHED, "noise_steps": 5},
            "mucac_binary": {
                **_PUBLISHED, "noise_steps": 5, "weight_start": 800.0, "weight_end": 12000.0
            },
        },
    )  # fmt: skip

    noise_steps: int = bounded(2, 0, 1000, "steps of the noise; s; 0 is fine-tuning")
    noise_step: float = bounded(0.01, 0.0, 1.0, "a step as a share of the pixel range; a")
    distance: str = choice("l2", DISTANCES, "between retained and forgotten logits")
    weight_start: float = bounded(200.0, 0.0, 1e9, "retain task at the first batch; w_0")
    weight_end: float = bounded(1000.0, 0.0, 1e9, "retain task at the last batch; w_1")
    bounds: PixelBounds | None = pixel_interval(
        "smallest and largest pixel, in the inputs' units; None takes each channel's from the data"
    )
    max_batches: int = bounded(40, 1, 10**6, "batches of an epoch without validation data")
    check_every: int | None = bounded(
        1, 1, 10**6, "batches between two final scores; None computes one an epoch", optional=True
    )
    patience: int = bounded(3, 1, 10**6, "checks without a better score before the run ends")
    epochs: int = bounded(1, 1, 1000, "passes over D_r")
    momentum: float = bounded(0.0, 0.0, 0.999, "momentum of SGD, first beta of Adam")
    batch_size: int | None = bounded(64, 1, 65536, "samples a step")

    def setup(self, run: Run) -> State:
        """Find the range of the pixels, per channel."""
        if run.validation is not None and not self._scores(run):
            run.log(
                f"gli: the final score needs {FEWEST} samples to forget and {2 * FEWEST} to "
                f"validate on; the run ends after {self.max_batches} batches instead"
            )
        found = pixel_range(self.bounds, _images(run.forget, _some(run.retain)), run.log)
        return {"low": found.low.to(run.device), "high": found.high.to(run.device)}

    def start_epoch(self, run: Run) -> State:
        """Note where the epoch starts: the weight runs on a line from there."""
        return {**run.state, "first": torch.tensor(run.step)}

    def passes(self, run: Run) -> Sequence[Pass]:
        """D_r once, D_f restarted beside it; a part of it where nothing says when to stop."""
        batches = self._batches(run)
        limit = batches if self._scores(run) else min(batches, self.max_batches)
        return (Pass("both", limit=limit),)

    def loss(self, batch: Pair, run: Run) -> Terms:
        """Return the retain task on guided images."""
        forget, retain = batch.forget, batch.retain
        if forget is None or retain is None:
            raise TypeError("gli steps over pairs of forget and retain batches")
        rows = torch.arange(len(retain))
        images = pixels_of(retain.inputs)[1]
        images = sent(images, run.device, torch.promote_types(images.dtype, torch.float32))
        low, high = run.state["low"], run.state["high"]
        if self.bounds is None:
            low, high = widened(low, high, images)

        def logits_of(pixels: Tensor) -> Tensor:
            return run.logits_from_inputs(with_pixels(retain.inputs, pixels, rows))

        number = run.step - int(run.state["first"])
        weight = ramp(number, self._batches(run), self.weight_start, self.weight_end)
        with run.eval_mode():
            with torch.no_grad():
                others = run.logits(forget)
                others = others[sent(rows % len(forget), others.device)]
            guided = guided_images(
                images, retain.labels, others, logits_of, weight=weight, distance=self.distance,
                steps=self.noise_steps, step=self.noise_step * (high - low), low=low, high=high,
            )  # fmt: skip
        logits = logits_of(guided)
        parts = objective(
            logits.detach(), retain.labels, others, weight=weight, distance=self.distance
        )
        run.count("distance", parts[0])
        run.count("weighted_task", -parts[1])
        return {"retain": cross_entropy(logits, retain.labels)}

    def check_interval(self, run: Run) -> int | None:
        """Do not check where no score can be computed."""
        return self.check_every if self._scores(run) else None

    def checked(self, seen: Seen, run: Run) -> str | None:
        """Compare the final score with the best one after some batches."""
        return None if seen.epoch_ended or not self._scores(run) else self._compare(run)

    def passed(self, run: Run) -> str | None:
        """Compare it after the last batch too."""
        compared = self.check_every is not None and run.step % self.check_every == 0
        return None if compared or not self._scores(run) else self._compare(run)

    def finish(self, run: Run) -> bool:
        """Put the best state back, if validation data told one."""
        if "score" in run.state:
            kept = {n.removeprefix(_BEST): t for n, t in run.state.items() if n.startswith(_BEST)}
            run.restore(kept)
            run.log(
                f"gli: the state with the best final score on validation data, "
                f"{float(run.state['score']):.4f}, is that after {int(run.state['at'])} batches"
            )
        return "score" in run.state

    def _compare(self, run: Run) -> str | None:
        """Keep the state if its score is the best so far; return why the run ends, if it does."""
        score = _final_score(run)
        run.count("final_score", score)
        since = int(run.state.get("since", torch.tensor(0))) + 1
        if "score" not in run.state or score > float(run.state["score"]):
            best = {_BEST + name: value for name, value in run.snapshot().items()}
            exact = torch.tensor(score, dtype=torch.float64)  # rounded, it would beat itself
            run.state = {**run.state, **best, "score": exact, "at": torch.tensor(run.step)}
            since = 0
        run.state = {**run.state, "since": torch.tensor(since)}
        if since < self.patience:
            return None
        return f"the final score did not rise in {since} checks, after {run.step} batches"

    def _scores(self, run: Run) -> bool:
        """Whether there are enough samples for the final score."""
        unseen = 0 if run.validation is None else len(run.validation) // 2
        return min(len(run.forget), unseen) >= FEWEST

    def _batches(self, run: Run) -> int:
        return batches_in(len(run.retain), self.batch_size or run.forget.batch_size)


def _images(*sets: SampleSet) -> Iterator[Tensor]:
    for samples in sets:
        for batch in samples.batches():
            yield pixels_of(batch.inputs)[1]


def _some(samples: SampleSet) -> SampleSet:
    """Return at most 1024 samples, spread over the set: enough to see the range of its pixels."""
    return samples.take(torch.arange(0, len(samples), -(-len(samples) // 1024)))


def _final_score(run: Run) -> float:
    """Return the final score of the live model; see the method for what is unseen."""
    if run.validation is None:
        raise TypeError("gli computes the final score on validation data")
    rows = torch.arange(len(run.validation))
    seen, unseen = run.validation.take(rows[0::2]), run.validation.take(rows[1::2])
    right = accuracy(run.predictions(seen).cpu(), seen.labels).mean()
    losses = [
        per_sample_loss(run.predictions(some).cpu(), some.labels) for some in (run.forget, unseen)
    ]
    return final_score(float(right), forgetting_score(*losses, seed=run.seed))
