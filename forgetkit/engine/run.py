"""What a method sees of a run: sets, logits, head and draws, but no device or optimiser."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

import torch
from torch import Generator, Tensor, nn

from forgetkit import draws
from forgetkit.copying import independent_copy
from forgetkit.data.sets import StoredSet
from forgetkit.data.views import Joined, RowsOf
from forgetkit.engine.bank import FeatureBank
from forgetkit.engine.modes import evaluating, frozen_tensors, set_eval
from forgetkit.engine.place import Place, moved_inputs
from forgetkit.engine.remembering import Measure
from forgetkit.engine.session import shares_places
from forgetkit.errors import DataError
from forgetkit.fresh import reset_weights
from forgetkit.goal import Goal
from forgetkit.substitution import output_with
from forgetkit.types import Batch, Inputs, SampleSet, Sets
from forgetkit.view import ModelView

logger = logging.getLogger("forgetkit")

Snapshot: TypeAlias = Mapping[str, Tensor]
"""Copies of the tensors that a run edits, by name."""


class Run:
    """The state of one run.

    Attributes:
        goal: what to forget.
        forget_classes: forgotten class indices, empty unless the goal is ``classes``.
        num_classes: width of the logits.
        seed: the request's seed.
        generator: CPU generator seeded from it.
        state: what the method's ``setup`` or ``start_epoch`` returned.
        epoch: current epoch, from 0.
        step: optimiser steps made so far.
        images: the sets as the user gave them.
        phase: name of the pass that is running.
        extra: what the method's ``extra`` returned: trained along, not part of the model.
        random_inputs: whether the loader gives different tensors each time a sample is read.
        target: forget accuracy at which the run is done, or ``None`` for no such rule.
        masks: 0/1 tensors by the name of a parameter: what may move, set before the first step;
            parameters that are not named may move as a whole.
        notes: sentences for the user, from ``log``.
        counts: numbers for the history, from ``count``.
        tallies: sums of this process for the history, from ``tally``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        view: ModelView | None,
        goal: Goal,
        forget_classes: tuple[int, ...],
        num_classes: int,
        seed: int,
        sets: Sets,
        place: Place,
        head_only: bool,
        editable: Mapping[str, nn.Parameter],
        before: Mapping[str, Tensor],
        autocast: Callable[[], AbstractContextManager[object]],
        own_precision: Callable[[], AbstractContextManager[None]],
        logits_of: Callable[[object], Tensor],
        measure: Measure,
        validation: SampleSet | None,
        initial: Mapping[str, Tensor] | Callable[[], nn.Module] | None,
        random_inputs: bool,
    ) -> None:
        self.goal = goal
        self.forget_classes = forget_classes
        self.num_classes = num_classes
        self.seed = seed
        self.generator = Generator().manual_seed(seed)
        self.state: Mapping[str, Tensor] = {}
        self.epoch = 0
        self.step = 0
        self.images = sets
        self.phase = ""
        self.extra: Mapping[str, Tensor] = {}
        self.target: float | None = None
        self.random_inputs = random_inputs
        self.masks: Mapping[str, Tensor] = {}
        self.notes: list[str] = []
        self.counts: dict[str, float | Tensor] = {}
        self.tallies: dict[str, float | Tensor] = {}
        self._measure = measure
        self._validation = validation
        self._initial = initial
        self.twin_was_made = False
        self._model = model
        self._view = view
        self._place = place
        self._head_only = head_only
        self._editable = dict(editable)
        self._before = before
        self._autocast = autocast
        self._own_precision = own_precision
        self._logits_of = logits_of
        self._original: nn.Module | None = None
        self._bank: FeatureBank | None = None
        self._head_weights: list[Tensor] = []
        if view is not None:
            self._head_weights = list(view.head_parameters().values())
        if view is not None and head_only:
            self._bank = FeatureBank(view, place, self._input_dtype)
        self._features: dict[int, tuple[SampleSet, SampleSet]] = {}

    @property
    def device(self) -> torch.device:
        """Where the run computes; a method needs it only for tensors that it makes itself."""
        return self._place.device

    @property
    def forget(self) -> SampleSet:
        """D_f: features for a head-only method, the user's inputs otherwise."""
        return self.working(self.images.forget)

    @property
    def retain(self) -> SampleSet:
        """D_r, in the same form.

        Raises:
            DataError: nothing retained is at hand.
        """
        if self.images.retain is None:
            raise DataError(
                "retain set: expected samples to keep, found none; pass `.retain(loader)` or a "
                "loader that holds the whole training set"
            )
        return self.working(self.images.retain)

    def working(self, samples: SampleSet) -> SampleSet:
        """Return a set as the method reads it: its features, extracted once, if head-only."""
        if not self._head_only or self._bank is None:
            return samples
        known = self._features.get(id(samples))
        if known is None:
            with evaluating(self._model), self._own_precision():
                known = (samples, self._bank.extract(samples))
            self._features[id(samples)] = known
        return known[1]

    def forget_features(self) -> None:
        """Drop the extracted features, so that the next use reads the loader again."""
        self._features.clear()

    def close(self) -> None:
        """Free what the run holds."""
        self._features.clear()
        self._original = None
        if self._bank is not None:
            self._bank.close()

    @property
    def view(self) -> ModelView:
        """The model split into features and head."""
        if self._view is None:
            raise DataError(
                "view: expected a split model, found a run that never asked for one; declare "
                "edits='head' or features=True in the method's Card to work on features"
            )
        return self._view

    @property
    def model(self) -> nn.Module:
        """The live model: for names, order and hooks that are taken off again."""
        return self._model

    @property
    def validation(self) -> SampleSet | None:
        """Validation samples, without those of forgotten classes."""
        return None if self._validation is None else self.working(self._validation)

    def within_mask(self, name: str, new: Tensor, old: Tensor) -> Tensor:
        """Return a parameter's new values where its mask lets it move, the old ones elsewhere."""
        mask = self.masks.get(name)
        return new if mask is None else torch.where(mask.bool(), new, old)

    def logits(self, batch: Batch) -> Tensor:
        """Return the live model's logits, (batch, classes)."""
        if self._head_only:
            return self.head(batch.inputs)
        return self.logits_from_inputs(batch.inputs)

    def features(self, batch: Batch) -> Tensor:
        """Return the live model's features, (batch, ...), with gradient where it is on."""
        if self._head_only:
            if not isinstance(batch.inputs, Tensor):
                raise TypeError("features are one tensor")
            return batch.inputs.to(self._place.device)
        with self._autocast():
            return self.view.features(self._on_device(batch.inputs))

    def functional_logits(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Return logits as a function of parameters, (batch, classes); fit for ``torch.func``.

        Computed without autocast, which ``torch.func`` transforms do not follow into every layer:
        statistics of gradients are summed at the precision of the weights.

        Args:
            parameters: replace those of ``run.parameters`` that they name.
            inputs: with a batch dimension.
        """
        placed = self._on_device(inputs)
        with self._place.autocast(enabled=False):
            return self._logits_of(output_with(self._model, parameters, placed))

    def logits_with(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return ``logits`` with other tensors in place of the parameters that they are named by.

        For a whole network, at the precision that the run trains in.
        """
        with self._autocast():
            inputs = self._on_device(batch.inputs)
            return self._logits_of(output_with(self._model, parameters, inputs))

    def logits_of(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of another network of the same kind, (batch, classes)."""
        with self._autocast():
            return self._logits_of(_call(module, self._on_device(batch.inputs)))

    def head(self, features: Inputs) -> Tensor:
        """Return logits from features, (batch, classes), with the live head.

        It is in float32 while it is edited, and in its own types while it is measured. Where those
        are several, as of an adapter in float32 on a layer in bfloat16, features are what the
        layers before it gave, which the model knows to handle.
        """
        if not isinstance(features, Tensor):
            raise TypeError("features are one tensor")
        dtype = next((weight.dtype for weight in self._head_weights), torch.float32)
        several = any(weight.dtype != dtype for weight in self._head_weights)
        if several and self._bank is not None:
            dtype = self._bank.dtype
        with self._place.autocast(enabled=several):
            return self.view.head(features.to(self._place.device, dtype))

    def logits_from_inputs(self, inputs: Inputs) -> Tensor:
        """Return the live model's logits from the user's inputs, whatever the method edits."""
        if self._head_only:  # the head is float32 then, whatever the layers before it are
            with self._own_precision(), self._autocast():
                features = self.view.features(self._on_device(inputs))
            return self.head(features)
        with self._autocast():
            return self._logits_of(_call(self._model, self._on_device(inputs)))

    def own_precision(self) -> AbstractContextManager[None]:
        """Return a block in which weights are of the model's own type, not float32 masters."""
        return self._own_precision()

    @property
    def original(self) -> nn.Module:
        """The model as it came in: a frozen copy in eval mode, made on first use."""
        if self._original is None:
            twin = independent_copy(self._model)
            tensors = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
            with torch.no_grad():
                for name, value in self._before.items():
                    tensors[name].copy_(value)
            self._original = set_eval(twin).requires_grad_(requires_grad=False)
        return self._original

    @torch.no_grad()
    def original_logits(self, batch: Batch) -> Tensor:
        """Return the logits of the model as it came in, (batch, classes)."""
        with self._autocast():
            return self._logits_of(_call(self.original, self._on_device(batch.inputs)))

    def fresh_twin(self) -> nn.Module:
        """Return an untrained copy of the model, frozen and in eval mode (rule R8)."""
        self.twin_was_made = True
        twin = copy.deepcopy(self.original)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            reset_weights(twin, self._initial)
        return set_eval(twin).requires_grad_(requires_grad=False)

    @property
    def processes(self) -> int:
        """Number of processes that share the run."""
        return self._place.world

    @property
    def starts_known(self) -> bool:
        """Whether ``fresh_twin`` has the given weights of one network, not newly drawn ones."""
        return self._initial is not None and not callable(self._initial)

    @torch.no_grad()
    def predictions(self, samples: SampleSet) -> Tensor:
        """Return the live model's logits on a set in eval mode, (samples, classes), float32.

        Weights of half precision are rounded as they will be written. Every process computes all
        of them.
        """
        with self.eval_mode(), self._own_precision():
            batches = samples.batches(samples.at_once)
            return torch.cat([self.logits(batch).float() for batch in batches])

    def accuracy(self, samples: SampleSet, labels: Tensor | None = None) -> float:
        """Return the live model's accuracy on a set in eval mode, against its labels or others."""
        return self._measure(samples, labels).accuracy

    def forget_accuracy(self) -> float:
        """Return what ``Seen.forget_accuracy`` would be at this moment."""
        wanted = self.images.forget.new_labels
        found = self._measure(self.images.forget, wanted).accuracy
        return found if wanted is None else 1.0 - found

    def snapshot(self) -> Snapshot:
        """Return copies of the tensors that the run edits."""
        return {name: tensor.detach().clone() for name, tensor in self._edited().items()}

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Write a snapshot back, in place."""
        for name, tensor in self._edited().items():
            tensor.copy_(snapshot[name])

    def _edited(self) -> dict[str, Tensor]:
        if self._head_only:
            return dict(self._editable)
        buffers = {n: b for n, b in self._model.named_buffers() if not shares_places(b)}
        return {**self._editable, **buffers}

    def rows(self, samples: SampleSet, rows: Tensor) -> SampleSet:
        """Return some rows of a set in that order; ``Batch.index`` stays the row in the set."""
        return RowsOf(samples, rows)

    def joined(self, *parts: SampleSet) -> SampleSet:
        """Return several sets in a row as one; ``Batch.index`` counts through."""
        return Joined(*parts)

    def stored(self, inputs: Inputs, labels: Tensor) -> SampleSet:
        """Return tensors as a set."""
        return StoredSet(inputs, labels.cpu(), batch_size=self.images.forget.batch_size)

    def log(self, message: str) -> None:
        """Tell the user one sentence: it goes to the log and to ``Result.notes``."""
        self.notes.append(message)
        logger.info(message)

    def tally(self, name: str, number: float | Tensor) -> None:
        """Add to a number of the epoch, summed over processes; call it in every step of a run.

        A scalar tensor is read when the epoch ends: ``float`` in a step would wait for the device.
        """
        self.tallies[name] = self.tallies.get(name, 0.0) + _noted(number)

    def count(self, name: str, number: float | Tensor) -> None:
        """Note a number; it stands in the next record of the history. Tensors as in ``tally``."""
        self.counts[name] = _noted(number)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors that the method may change, by dotted path."""
        return dict(self._editable)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers by dotted path, but for those of modules whose parameters are all frozen."""
        frozen = set(frozen_tensors(self._model))
        return {name: b for name, b in self._model.named_buffers() if name not in frozen}

    def uniform(self, purpose: str, positions: Tensor) -> Tensor:
        """Return one float64 in [0, 1) per sample position, independent of the reading order."""
        return draws.uniform(self.seed, purpose, positions)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Put the model into eval mode for the block: statistics passes and edits."""
        with evaluating(self._model, editing=True):
            yield

    def _on_device(self, inputs: Inputs) -> Inputs:
        return moved_inputs(inputs, self._place.device, self._input_dtype())

    def _input_dtype(self) -> torch.dtype | None:
        """Return the type for floating inputs: that of the first weights at this moment."""
        return next((p.dtype for p in self._model.parameters() if p.is_floating_point()), None)


def _noted(number: float | Tensor) -> float | Tensor:
    return number.detach().clone() if isinstance(number, Tensor) else float(number)


def _call(model: nn.Module, inputs: Inputs) -> object:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs)
