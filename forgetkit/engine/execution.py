"""The life of one request: check, split, borrow, run, measure, give back."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from forgetkit.adapting import logits_of, unwrap
from forgetkit.data.loaders import Loader
from forgetkit.data.randomness import random_state_kept
from forgetkit.data.workers import end_workers, workers_kept
from forgetkit.engine import checks
from forgetkit.engine.aims import fallback_target, forget_target, reading_of
from forgetkit.engine.buffers import average_buffers, moved_unsaved
from forgetkit.engine.clock import Clock
from forgetkit.engine.finite import IMAGES
from forgetkit.engine.guard import UNWATCHED, BestState, Guard, Reading, hold_out, verdict
from forgetkit.engine.measuring import SetAccuracy, measure
from forgetkit.engine.modes import evaluating, set_update_mode
from forgetkit.engine.moment import put_back, taken
from forgetkit.engine.outside import Outside, require_frozen_kept
from forgetkit.engine.place import Place, Precision, choose_place
from forgetkit.engine.preparing import Prepared, prepare
from forgetkit.engine.remarks import (
    NOTHING_KNOWN,
    remark_if_unfulfilled,
    remark_on_idle_steps,
    remark_on_labels,
    remark_on_other_progress,
    remark_on_parts,
    remark_on_progress,
    remark_on_unused_weights,
    remark_on_zero,
)
from forgetkit.engine.remembering import Remembered
from forgetkit.engine.restart import restart
from forgetkit.engine.resuming import Progress, Saved, progress_of
from forgetkit.engine.run import Run
from forgetkit.engine.session import (
    Storage,
    borrowed_flags,
    borrowed_randomness,
    named_tensors,
    rolled_back_on_error,
    write_back,
)
from forgetkit.engine.surroundings import own_surroundings
from forgetkit.engine.training import Loop, Outcome
from forgetkit.errors import ForgetkitError, ModelError, UnlearningFailed
from forgetkit.fingerprint import model_tensors, same_bits
from forgetkit.method import Method
from forgetkit.model_errors import cure_of
from forgetkit.patch import Patch
from forgetkit.recipe import FullNetwork, Trained
from forgetkit.result import Result
from forgetkit.types import SampleSet

if TYPE_CHECKING:
    from forgetkit.api import Request


def execute(request: Request, loader: Loader, guard: Guard | None) -> Result:
    """Carry out a request on the data of a loader.

    Raises:
        ForgetkitError: bad input before anything changed, or ``UnlearningFailed`` when the run
            broke; either way the model is bit-identical to what came in, but for weights outside
            of the head that a run of the head alone should not have written to.
    """
    clock = Clock()
    with ExitStack() as stack:
        stack.enter_context(borrowed_randomness(request.random_seed))
        stack.enter_context(own_surroundings())
        stack.enter_context(workers_kept())
        execution: Execution | None = None
        try:
            with clock("prepare"):
                place = choose_place(request.device, request.mixed_precision, request.accelerator)
                checks.check_hooks(unwrap(request.model), place.device)
                prepared = prepare(request, loader, watched=guard.most if guard else 0)
            execution = Execution(request, prepared, place, guard, clock)
            return execution.result()
        except ForgetkitError:
            raise
        except Exception as error:
            where = "" if execution is None else f" ({execution.position()})"
            raise UnlearningFailed(
                f"run(): expected the run to finish, found {type(error).__name__} in phase "
                f"{clock.phase}{where}: {error}; the model holds the weights it came in with: "
                f"{cure_of(error)}"
            ) from error


WEAKER = (
    "the edit broke the model, which had finite logits before it; make it weaker: a lower lr, "
    "max_norm, or the method's own strength"
)


class Execution:
    """One run on prepared input. Everything borrowed is given back when ``result`` returns."""

    def __init__(
        self, request: Request, prepared: Prepared, place: Place, guard: Guard | None, clock: Clock
    ) -> None:
        self._request = request
        self._prepared = prepared
        self._place = place
        self._guard = guard
        self._clock = clock
        self._model = prepared.model
        self._method = prepared.method
        self._head_only = prepared.method.card.edits == "head"
        self._run: Run | None = None
        self._watched: SampleSet | None = None
        self._best: BestState | None = None
        self._partly, self._chosen = False, False
        self._progress: Progress | None = None
        self._cure = IMAGES

    def position(self) -> str:
        """Say how far the run is."""
        if self._run is None:
            return "before the first step"
        return f"epoch {self._run.epoch + 1}, step {self._run.step}"

    def result(self) -> Result:
        """Run and report."""
        self._progress = progress_of(self._request, self._prepared, self._place, self._guard)
        tensors = named_tensors(self._model)
        candidates = self._candidates()
        editable = checks.editable_parameters(candidates, self._method)
        frozen = {name: p for name, p in candidates.items() if name not in editable}
        buffers = dict(self._model.named_buffers())
        kept = {**editable, **buffers}
        names = set(editable) if self._head_only else set(kept)
        widened = set(candidates) if self._head_only else None  # a frozen part of a head, too
        with rolled_back_on_error({**frozen, **kept}) as before:
            with (
                borrowed_flags(self._model),
                self._borrowed_storage(tensors, names, widened) as storage,
            ):
                outside = Outside(self._beyond(candidates))
                with outside.told_of(self._method.card.slug):
                    measured_before, measured_after, outcome, undone = self._inside(
                        storage, editable, kept, before
                    )
                # here: memory given back hides a change
                require_frozen_kept(frozen, before, self._method.card.slug)
                outside.require_kept(self._method.card.slug)
            if undone is not None:
                write_back(kept, {name: before[name] for name in kept})
            elif self._head_only:  # a forward may count calls in a buffer; a head edit leaves none
                write_back(buffers, {name: before[name] for name in buffers})
            with self._clock("patch"):
                live = model_tensors(self._model)
                copies = {id(kept[name]): before[name] for name in names}
                was = {name: copies.get(id(tensor), tensor) for name, tensor in live.items()}
                patch = Patch.between(was, live, self._record())
                unsaved = moved_unsaved(buffers, before, {id(tensor) for tensor in live.values()})
            # here, as both can take a while in which Ctrl-C must still roll back
            end_workers()
            self._clear_progress()
        return Result(
            model=self._request.model,
            method=self._method,
            goal=self._prepared.goal,
            forget_classes=self._prepared.forget_classes,
            before=measured_before,
            after=measured_before if undone is not None else measured_after,
            history=outcome.history,
            seconds=dict(self._clock.seconds),
            stopped_because=undone or outcome.stopped_because,
            rolled_back=undone is not None,
            seed=self._request.random_seed,
            patch=patch,
            why=self._prepared.why,
            class_names=self._prepared.class_names,
            samples=self._prepared.sizes(),
            notes=list(self._active().notes),
            head=self._request.head_name,
            output=self._request.output,
            unsaved=unsaved,
        )

    @contextmanager
    def _borrowed_storage(
        self, tensors: dict[str, Tensor], names: set[str], widened: set[str] | None
    ) -> Iterator[Storage]:
        with Storage(tensors, names, self._place.device, widened=widened).borrowed() as storage:
            weights = dict(self._model.named_parameters())  # a buffer alone says nothing of layers
            halves = {dtype for name, dtype in storage.halved.items() if name in weights}
            if not self._head_only and halves and self._place.precision == "no":
                half: Precision = "fp16" if torch.float16 in halves else "bf16"
                self._place = replace(self._place, precision=half)
            yield storage

    def _candidates(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the method's card lets it change, frozen ones included."""
        if self._prepared.view is None or not self._head_only:
            return dict(self._model.named_parameters())
        candidates = self._prepared.view.head_parameters()
        checks.check_untied(candidates, self._prepared.view.tied)
        return candidates

    def _beyond(self, candidates: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the parameters that are not even candidates: those outside of the head."""
        inside = {id(parameter) for parameter in candidates.values()}
        return {n: p for n, p in self._model.named_parameters() if id(p) not in inside}

    def _inside(
        self,
        storage: Storage,
        editable: dict[str, nn.Parameter],
        kept: dict[str, Tensor],
        before: dict[str, Tensor],
    ) -> tuple[dict[str, SetAccuracy], dict[str, SetAccuracy], Outcome, str | None]:
        """Do all that happens while the model is borrowed; return why it must be undone, if so."""
        chosen = {id(parameter) for parameter in editable.values()}
        for parameter in self._model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        sets = self._prepared.sets
        moving = list(kept.values()) if self._head_only else None
        accuracy = Remembered(self._model, partial(self._measured, storage), moving)
        if self._guard is not None:
            sets, self._watched = self._watch_slice()
        run = self._run = Run(
            model=self._model,
            view=self._prepared.view,
            goal=self._prepared.goal,
            forget_classes=self._prepared.forget_classes,
            num_classes=self._prepared.num_classes,
            seed=self._request.random_seed,
            sets=sets,
            place=self._place,
            head_only=self._head_only,
            editable=editable,
            before=before,
            autocast=self._place.autocast,
            own_precision=lambda: self._own_precision(storage),
            logits_of=partial(
                logits_of,
                output_choice=self._request.output,
                num_classes=self._prepared.num_classes,
            ),
            measure=accuracy,
            validation=self._prepared.validation.get("validation_retain"),
            initial=self._request.initial,
            random_inputs=self._prepared.random_inputs,
        )
        if self._guard is not None and self._watched is None:
            run.log(UNWATCHED)
        for note in self._prepared.notes:
            run.log(note)
        remark_on_parts(self._method, run, self._request.accumulate)
        remark_on_labels(run, sets.forget.labels)
        remark_on_progress(self._method, run, asked=self._progress is not None)
        try:
            with self._clock("measure"):
                measured_before = self._measure(accuracy)
            self._cure = WEAKER
            right_labels = self._prepared.goal.kind in ("classes", "instances")
            if measured_before["forget"].accuracy == 0.0 and right_labels:
                run.log(NOTHING_KNOWN)
            start = reading_of(measured_before)
            goal, validated = self._prepared.goal, "validation_retain" in measured_before
            target = run.target = forget_target(
                self._method, goal, sets.forget.labels, measured_before
            )
            remark_on_zero(self._method, run, validated=validated)
            edited = kept if not self._head_only else dict(editable)
            if (
                self._guard is not None
                and self._watched is not None
                and not self._method.card.fresh
            ):
                goal_target = target if target is not None else fallback_target(goal, start)
                self._best = BestState(edited, start, goal_target, self._guard.budget)
            outcome = self._change(accuracy, run)
            remark_on_unused_weights(self._method, run, self._request.initial)
            earlier = None if self._best is None else self._best.restore()
            if earlier is not None:
                outcome.stopped_because += f"; {earlier}"
            if self._place.world > 1 and not self._head_only:
                average_buffers(self._model, before, self._place)
            with self._clock("measure"):
                measured_after = self._measure(accuracy)
            undone = None
            if self._guard is not None:
                undone = verdict(self._guard, start, reading_of(measured_after))
            if undone is None:
                after = reading_of(measured_after).forget
                remark_if_unfulfilled(self._method.card.slug, run, start.forget, after)
        finally:
            run.close()
        return measured_before, measured_after, outcome, undone

    def _watch_slice(self) -> tuple[Any, SampleSet | None]:
        """Return the sets to work on and what the guard watches: validation data comes first."""
        if self._guard is None:
            return self._prepared.sets, None
        generator = Generator().manual_seed(self._request.random_seed)
        kept = self._prepared.validation.get("validation_retain")
        if kept is not None:
            rows = torch.randperm(len(kept), generator=generator)[: self._guard.most]
            return self._prepared.sets, kept.take(rows.sort().values)
        return hold_out(self._prepared.sets, self._guard, generator)

    def _change(self, accuracy: Remembered, run: Run) -> Outcome:
        """Let the method change the weights."""
        method = self._method
        saved = None if self._progress is None else self._progress.found()
        begun = None if saved is None else self._go_on(saved, run)
        if begun is None:
            remark_on_other_progress(run, self._progress)
            self._begin(run)
        if not isinstance(method, Trained):
            with self._clock("edit"), torch.no_grad(), evaluating(self._model, editing=True):
                method.edit(run)
            return Outcome(stopped_because="a closed-form edit, made once")
        with self._clock("setup"), torch.no_grad(), evaluating(self._model, editing=True):
            self._choose_parameters(run)
            if begun is None:
                method.begin(run)
                run.extra = {
                    name: tensor.detach().clone().requires_grad_()
                    for name, tensor in method.extra(run).items()  # noqa: S610  no database
                }
        with self._clock("train"):
            outcome = Loop(
                method,
                run,
                self._place,
                update_mode=self._update_mode,
                watch=lambda: self._observe(accuracy),
                accumulate=self._request.accumulate,
                refresh=self._prepared.random_inputs,
                begun=begun,
                keep=None if self._progress is None else self._save,
            ).train()
        if type(method).finish is not Method.finish:
            before = run.snapshot()
            with self._clock("finish"), torch.no_grad(), evaluating(self._model, editing=True):
                chose = method.finish(run)
            changed = any(not same_bits(t, before[n]) for n, t in run.snapshot().items())
            if (chose or changed) and self._best is not None:  # states from before are not results
                self._best.drop()
                self._observe(accuracy)
        if outcome.clipped:
            steps = "1 step" if outcome.clipped == 1 else f"{outcome.clipped} steps"
            outcome.stopped_because += f"; the gradient was clipped in {steps}"
        remark_on_idle_steps(method.card.slug, run, outcome.made)
        return outcome

    def _begin(self, run: Run) -> None:
        """Let the method compute what stays fixed, on new weights if it retrains."""
        method = self._method
        if method.card.fresh:
            with self._clock("reset"):
                restart(run, method.card.slug, self._request.initial)
        with self._clock("setup"), torch.no_grad(), evaluating(self._model, editing=True):
            run.state = method.setup(run)
        if self._best is not None and run.target is not None:
            self._best.aim(run.target)

    def _go_on(self, saved: Saved, run: Run) -> Saved:
        """Go on from where an earlier run of the same request was; return what the loop left."""
        left = put_back(saved, run, self._best)
        self._clock.add(saved.record["seconds"])
        run.log(
            f"{self._method.card.slug}: went on after epoch {saved.epochs} of an earlier run, from "
            f"{self._request.progress_folder}"
        )
        return left

    def _save(self, left: Saved) -> None:
        """Write the progress of the run, where it is time to."""
        if self._progress is None or left.epochs % self._request.progress_every:
            return
        run, seconds = self._active(), self._clock.so_far()
        with self._clock("save progress"):
            try:
                self._progress.save(taken(left.epochs, run, self._best, left, seconds))
            except OSError as error:  # hours of work are worth more than the way back to them
                run.log(
                    f"resumable: the progress after epoch {left.epochs} could not be written to "
                    f"{self._progress.folder} ({type(error).__name__}: {error}); the run goes on, "
                    "and can be resumed from what stands there; make room to keep more"
                )

    def _clear_progress(self) -> None:
        """Remove what a run that has ended will not go on from."""
        if self._progress is None:
            return
        try:
            self._progress.clear()
        except OSError as error:
            self._active().log(
                f"resumable: the run has ended, but its progress in {self._progress.folder} could "
                f"not be removed ({type(error).__name__}: {error}); delete it"
            )

    def _choose_parameters(self, run: Run) -> None:
        """Let only what the method trains require a gradient; the flags are given back."""
        trained = self._method.trained(run)
        frozen = any(not p.requires_grad for p in self._model.parameters())
        self._chosen = trained is not None
        self._partly = frozen or self._chosen
        for name, parameter in run.parameters.items():
            parameter.requires_grad_(trained is None or name in trained)
        if not any(parameter.requires_grad for parameter in run.parameters.values()):
            named = f" ({', '.join(sorted(trained)[:3])})" if trained else ""
            raise ModelError(
                f"{self._method.card.slug}: expected parameters with requires_grad=True among "
                f"those that it trains{named}, found none; call requires_grad_(True) on what may "
                "change"
            )

    def _update_mode(self) -> None:
        if self._head_only:
            return
        method = self._method
        bn = method.bn if isinstance(method, FullNetwork) else "frozen"
        if bn is None:
            raise TypeError(f"{method.card.slug} runs with the bn that tuned() filled in")
        set_update_mode(
            self._model, bn=bn, dropout=method.dropout, partly=self._partly, front=not self._chosen
        )

    def _own_precision(self, storage: Storage) -> AbstractContextManager[None]:
        return storage.in_own_precision() if storage.halved else nullcontext()

    def _measure(self, accuracy: Remembered) -> dict[str, SetAccuracy]:
        run = self._active()
        sets: dict[str, SampleSet] = {"forget": run.images.forget}
        if self._watched is not None and "validation_retain" not in self._prepared.validation:
            sets["retain"] = self._watched
        sets |= self._prepared.validation
        measured = {name: accuracy(samples) for name, samples in sets.items()}
        wanted = run.images.forget.new_labels
        if wanted is not None:
            measured["new_labels"] = accuracy(run.images.forget, wanted)
        return measured

    def _measured(
        self, storage: Storage, samples: SampleSet, labels: Tensor | None = None
    ) -> SetAccuracy:
        run = self._active()
        looks = self._clock("check") if self._clock.phase == "train" else nullcontext()
        # images that a loader draws to be measured are not missing where it draws to train
        with looks, random_state_kept(), self._own_precision(storage), evaluating(self._model):
            return measure(
                run.working(samples),
                run.logits,
                self._prepared.num_classes,
                self._place,
                labels=labels,
                cure=self._cure,
            )

    def _observe(self, accuracy: Remembered) -> dict[str, float]:
        """Measure what the history shows after an epoch, and offer the state to the guard."""
        forget = accuracy(self._active().images.forget)
        row = {"forget_accuracy": forget.accuracy}
        kept: float | None = None
        watched = self._watched or self._prepared.validation.get("validation_retain")
        if watched is not None:
            kept = accuracy(watched).accuracy
            row["retain_accuracy"] = kept
        remembered = forget.accuracy
        if self._prepared.sets.forget.new_labels is not None:
            remembered = self._active().forget_accuracy()
            row["new_label_accuracy"] = 1.0 - remembered
        if self._best is not None:
            self._best.offer(Reading(remembered, forget.loss, kept))
        return row

    def _active(self) -> Run:
        if self._run is None:
            raise TypeError("the run has not begun")
        return self._run

    def _record(self) -> dict[str, object]:
        return {
            "goal": self._prepared.goal.to_json(),
            "forget_classes": list(self._prepared.forget_classes),
            "method": self._method.card.slug,
            "hyperparameters": self._method.hyperparameters(),
            "seed": self._request.random_seed,
            "versions": {name: importlib.metadata.version(name) for name in ("forgetkit", "torch")},
        }
