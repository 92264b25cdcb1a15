"""Relearning: how few steps on how few samples bring a forgotten class back.

Models are trained as copies; the ones that are passed in stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from forgetkit.auditing.evidence import Missing, Subject
from forgetkit.auditing.inputs import view_of
from forgetkit.auditing.probes import few_shot_rows
from forgetkit.copying import independent_copy
from forgetkit.dryrun.outputs import logits_of
from forgetkit.engine.modes import set_eval
from forgetkit.engine.place import moved_inputs
from forgetkit.losses import predictions
from forgetkit.metric import Verdict
from forgetkit.types import Inputs, SampleSet
from forgetkit.view import ModelView

PART = 64
"""Samples that go through a model at a time."""


@dataclass(frozen=True)
class Curve:
    """Accuracies while a class is taught again.

    Args:
        steps: at which steps they were measured; 0 is before the first.
        forgotten: on test samples of the forgotten classes.
        kept: on test samples of the other classes, NaN without any.
    """

    steps: Sequence[int]
    forgotten: Sequence[float]
    kept: Sequence[float]

    def arrival(self, target: float) -> float:
        """Return the first measured step with at least this accuracy, infinity if none."""
        return next(
            (
                float(step)
                for step, value in zip(self.steps, self.forgotten, strict=True)
                if value >= target
            ),
            math.inf,
        )

    def area(self) -> float:
        """Return the mean of the accuracy over the measured steps."""
        return sum(self.forgotten) / len(self.forgotten)


@dataclass(frozen=True)
class Lesson:
    """What the attacker has and how it is measured; the same for every model.

    Args:
        forget: k samples of each forgotten class.
        retain: samples to keep, of which three for each forget sample join every step.
        test_forget: where the accuracy on forgotten classes is measured.
        test_retain: the same for the others, or ``None``.
        steps: largest number of steps.
        every: steps between measurements.
        lr: of SGD with momentum 0.9.
        seed: of the retain samples of each step.
        target: accuracy at which a run may stop, or ``None`` to run to the end.
    """

    forget: SampleSet
    retain: SampleSet
    test_forget: SampleSet
    test_retain: SampleSet | None
    steps: int
    every: int
    lr: float
    seed: int
    target: float | None


def lesson(
    forget: SampleSet, retain: SampleSet, test_forget: SampleSet, test_retain: SampleSet | None,
    *, shots: int, most_tests: int, steps: int, every: int, lr: float, seed: int,
    target: float | None,
) -> Lesson:  # fmt: skip
    """Return a lesson with ``shots`` forget samples a class and at most ``most_tests`` tests."""
    few = forget.take(few_shot_rows(forget.labels, shots, seed))
    pool = Generator().manual_seed(seed)
    kept = retain.take(torch.randperm(len(retain), generator=pool)[: 12 * len(few) + 200])
    tests = [
        None if one is None else one.take(few_rows(len(one), most_tests, seed))
        for one in (test_forget, test_retain)
    ]
    return Lesson(few, kept, tests[0] or test_forget, tests[1], steps, every, lr, seed, target)


def few_rows(size: int, most: int, seed: int) -> Tensor:
    """Return at most ``most`` rows in order, drawn with the seed."""
    generator = Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:most].sort().values


def reset_rows(view: ModelView, forgotten: Sequence[int]) -> None:
    """Set the head's rows of some classes to the mean of the other rows, in place.

    Args:
        view: of a model that may be changed.
        forgotten: class indices.

    Raises:
        Missing: a logit does not have rows of its own, or no class is left.
    """
    if not view.separable:
        raise Missing("needs a head in which every class has rows of its own")
    kept = [label for label in range(view.num_classes) if label not in forgotten]
    if not kept:
        raise Missing("needs at least one class that is kept")
    with torch.no_grad():
        rows = {label: view.rows(label) for label in (*kept, *forgotten)}
        for part in range(len(rows[kept[0]])):

            def piece(label: int, part: int = part) -> Tensor:
                row = rows[label][part]
                index = torch.tensor(row.index, device=row.parameter.device)
                return row.parameter.index_select(row.axis, index)

            mean = torch.stack([piece(label) for label in kept]).mean(dim=0)
            for label in forgotten:
                row = rows[label][part]
                index = torch.tensor(row.index, device=row.parameter.device)
                row.parameter.index_copy_(row.axis, index, mean)


def relearn(
    subject: Subject,
    what: Lesson,
    *,
    form: str,
    forgotten: Sequence[int],
    device: torch.device,
    head: str | Sequence[str] | None = None,
) -> Curve:
    """Return the curve of a copy of the model that is taught the forgotten classes again.

    SGD with momentum 0.9 on CE, everything in eval mode: batch statistics and dropout are frozen.

    Args:
        subject: the model; not changed.
        what: samples, steps and step size.
        form: ``"as_is"``, ``"reset"`` (head rows of the forgotten classes start at the mean of the
            others), or ``"head"`` (reset, and only the head is trained, on cached features).
        forgotten: class indices.
        device: where to compute.
        head: dotted path(s) of the head, when detection must be overruled.

    Raises:
        Missing: the form needs a head, but the model cannot be split.
    """
    twin = independent_copy(subject.model if subject.view is None else subject.view.model)
    twin = set_eval(twin.float().to(device)).requires_grad_(True)
    twin.zero_grad(set_to_none=True)
    view: ModelView | None = None
    if form != "as_is":
        view = view_of(twin, what.forget, device, head)
        if view is None:
            raise Missing("needs a model that can be split into features and head")
        reset_rows(view, forgotten)
    if form == "head" and view is not None:
        split = view
        parameters: list[nn.Parameter] = list(split.head_parameters().values())

        def prepared(samples: SampleSet) -> tuple[Inputs, Tensor]:
            inputs, labels = _read(samples, device)
            with torch.no_grad():
                parts = [split.features(part) for part in _parts(inputs)]
            return torch.cat(parts), labels

        def answer(inputs: Inputs) -> Tensor:
            if not isinstance(inputs, Tensor):
                raise TypeError("features are one tensor")
            return split.head(inputs)
    else:
        parameters = list(twin.parameters())

        def prepared(samples: SampleSet) -> tuple[Inputs, Tensor]:
            return _read(samples, device)

        def answer(inputs: Inputs) -> Tensor:
            output = twin(inputs) if isinstance(inputs, Tensor) else twin(**inputs)
            return logits_of(output)

    return _taught(answer, parameters, what, prepared)


def _taught(
    answer: Callable[[Inputs], Tensor],
    parameters: Sequence[nn.Parameter],
    what: Lesson,
    prepared: Callable[[SampleSet], tuple[Inputs, Tensor]],
) -> Curve:
    few, few_labels = prepared(what.forget)
    kept, kept_labels = prepared(what.retain)
    tests = [None if one is None else prepared(one) for one in (what.test_forget, what.test_retain)]
    optimizer = torch.optim.SGD(parameters, lr=what.lr, momentum=0.9)
    generator = Generator().manual_seed(what.seed)
    steps: list[int] = []
    found: tuple[list[float], list[float]] = ([], [])
    for step in range(what.steps + 1):
        if step % what.every == 0 or step == what.steps:
            steps.append(step)
            for values, test in zip(found, tests, strict=True):
                values.append(math.nan if test is None else _accuracy(answer, *test))
            if what.target is not None and found[0][-1] >= what.target:
                break
        if step == what.steps:
            break
        rows = torch.randperm(len(kept_labels), generator=generator)[: 3 * len(few_labels)]
        rows = rows.to(kept_labels.device)
        optimizer.zero_grad()
        total = len(few_labels) + len(rows)
        for inputs, labels in ((few, few_labels), (_taken(kept, rows), kept_labels[rows])):
            # part by part: a whole step of large images would not fit
            for part, own in zip(_parts(inputs), labels.split(PART), strict=True):
                with torch.enable_grad():
                    loss = nn.functional.cross_entropy(answer(part), own, reduction="sum")
                    (loss / total).backward()
        optimizer.step()
    return Curve(steps, *found)


def _accuracy(answer: Callable[[Inputs], Tensor], inputs: Inputs, labels: Tensor) -> float:
    with torch.no_grad():
        predicted = torch.cat([predictions(answer(part)) for part in _parts(inputs)])
    return int((predicted == labels).sum()) / len(labels)


def _read(samples: SampleSet, device: torch.device) -> tuple[Inputs, Tensor]:
    """Return all inputs and labels of a small set on the device."""
    parts = [(moved_inputs(b.inputs, device, torch.float32), b.labels) for b in samples.batches()]
    labels = torch.cat([own for _, own in parts]).to(device)
    first = parts[0][0]
    if isinstance(first, Tensor):
        return torch.cat([one for one, _ in parts if isinstance(one, Tensor)]), labels
    named = [one for one, _ in parts if not isinstance(one, Tensor)]
    return {name: torch.cat([one[name] for one in named]) for name in first}, labels


def _taken(inputs: Inputs, rows: Tensor | slice) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return {name: value[rows] for name, value in inputs.items()}


def _parts(inputs: Inputs) -> list[Inputs]:
    count = len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))
    return [_taken(inputs, slice(at, at + PART)) for at in range(0, count, PART)]


def arrivals_verdict(own: float, controls: Sequence[float], cap: int) -> Verdict:
    """Return ``residual``, ``over-forgotten``, ``as retrain`` or ``not decidable``.

    Faster than every retrained model is residual, slower than twice the slowest over-forgotten.
    Of a model that never arrived it is known only that it needs more than ``cap`` steps.

    Args:
        own: steps until the class is back, infinity if it never was.
        controls: the same of each retrained model.
        cap: steps after which it was given up.
    """
    if not controls:
        return "not decidable"
    if own < min(controls):
        return "residual"
    slowest = 2 * max(controls)
    if math.isinf(own):
        return "over-forgotten" if cap >= slowest else "not decidable"
    return "over-forgotten" if own > slowest else "as retrain"
