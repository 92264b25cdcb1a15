"""A log of what single training steps changed, for the method ``amnesiac``.

It hooks into the user's own training loop: tell it which samples a batch holds, and every optimiser
step that saw a tracked sample leaves one safetensors file with the change of all weights.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from operator import index
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import Self

from forgetkit.errors import DataError
from forgetkit.log_header import close_log, open_log, set_aside, weights_digest
from forgetkit.log_storage import Storage, hit_chance
from forgetkit.logged_tensors import change, copies, logged_tensors, not_held, trainable
from forgetkit.written_log import VERSION

Sensitive: TypeAlias = Iterable[int] | Tensor | Callable[[int], bool] | None
logger = logging.getLogger("forgetkit")


class AmnesiacLog:
    """Write the change of all trained weights of each step whose batch holds a tracked sample.

    Call ``batch(positions)`` before the forward pass of every batch; the rest happens in a hook of
    the optimiser. Training stays bit-identical: the hook only reads. Parameters and the buffers of
    normalisation layers are logged; what is frozen when ``batch`` is called counts as unmoved. With
    several processes each passes its own positions and the first one writes. A step that a gradient
    scaler skips is logged with the step after it.

    Args:
        model: what is trained; wrappers of compile and data parallel may be around it.
        optimizer: its ``step`` is watched; of several optimisers, the one that steps last.
        folder: for the files; created when absent.
        sensitive: positions in the data set that may have to be forgotten one day, or a function
            that says so of a position; ``None`` tracks all of them.
        samples: size of the data set in which positions count. A later request finds by it in which
            data set its own positions have to be counted, when its loader is over a ``Subset``.
        resume: go on with a log that is in the folder already. After a checkpoint was restored it
            is the number of steps that its model has made, ``log.steps`` when it was saved: files
            of later steps are set aside, as the model holds nothing of them (they end in
            ``.aside`` and may be deleted). ``True`` goes on where the log was closed, with the
            weights of that moment.

    Attributes:
        steps: steps of the optimiser so far, over all parts of a training that was resumed.

    Raises:
        DataError: the folder holds a log already, one of another model, or one that this model's
            training did not leave.

    Source: Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021.

    Differences: buffers are logged beside weights, and only tensors that moved are stored.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: str | Path,
        *,
        sensitive: Sensitive = None,
        samples: int | None = None,
        resume: bool | int = False,
    ) -> None:
        self.folder = Path(folder)
        self._samples = samples
        self._sensitive = _positions_of(sensitive)
        self._model = model
        self._positions: set[int] = set()
        self._before: dict[str, Tensor] = {}
        self._outside: dict[str, Tensor] = {}
        self._started = self._closed = False
        self.steps = self._open(resume)
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps the real one
        self._optimizer = inner
        self._handle = inner.register_step_post_hook(lambda *_: self._stepped())

    def expect(
        self, samples: int, batch_size: int, epochs: float, *, tracked: int | None = None
    ) -> Storage:
        """Say before training how much will be written.

        Args:
            samples: in the training set.
            batch_size: samples an optimiser step, over all processes.
            epochs: passes over the training set.
            tracked: number of sensitive samples; needed when ``sensitive`` is a function, which
                otherwise counts as all of them.

        Raises:
            DataError: the disk has less room than that.
        """
        if tracked is None:
            tracked = len(self._sensitive) if isinstance(self._sensitive, frozenset) else samples
        whole, rest = divmod(samples, batch_size)
        chances = whole * hit_chance(samples, batch_size, tracked)
        chances += hit_chance(samples, rest, tracked)
        parameters, buffers = logged_tensors(self._model)
        tensors = {**trainable(parameters), **buffers}
        size = sum(t.numel() * max(t.element_size(), 4) for t in tensors.values())
        storage = Storage(size, epochs * chances)
        free = shutil.disk_usage(self.folder).free
        if storage.total_bytes > free:
            raise DataError(
                f"AmnesiacLog(folder={str(self.folder)!r}): expected room for {storage}, found "
                f"{free / 2**30:.2f} GiB free; track fewer samples or choose another disk"
            )
        logger.info("the training log will take %s", storage)
        return storage

    def batch(self, positions: Iterable[int] | Tensor) -> None:
        """Announce the samples of the coming forward pass, as positions in the data set.

        With gradient accumulation call it before each part; the step counts for all of them.

        Raises:
            DataError: weights moved that the watched optimiser does not hold.
        """
        listed = positions.tolist() if isinstance(positions, Tensor) else positions
        found = _over_processes({int(p) for p in listed if self._tracks(int(p))})
        # Looked up anew: layers are thawed during training, and conversions replace buffers.
        parameters, buffers = logged_tensors(self._model)
        # Weights move in the step alone, so they can wait for a tracked sample; buffers cannot.
        if not self._started:
            self._check_outside(parameters)
            self._before = copies(buffers)
            self._started = True
        if found:
            self._before |= copies(
                {n: p for n, p in trainable(parameters).items() if n not in self._before}
            )
        self._positions |= found

    def rewind(self, steps: int) -> None:
        """Go back with the model to an earlier checkpoint: later files are set aside.

        Args:
            steps: ``log.steps`` when that checkpoint was saved.
        """
        if _first_process():
            set_aside(self.folder, steps)
        self.steps = steps

    def close(self) -> None:
        """Let go of the optimiser and note the weights that training left; the files stay.

        By them a later request knows that nothing of this log was taken back yet.
        """
        self._handle.remove()
        if not self._closed and _first_process():
            close_log(self.folder, weights_digest(self._model))
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tracks(self, position: int) -> bool:
        if callable(self._sensitive):
            return self._sensitive(position)
        return self._sensitive is None or position in self._sensitive

    @torch.no_grad()
    def _stepped(self) -> None:
        if self._sensitive is None and not self._started:
            raise DataError(
                f"AmnesiacLog(folder={str(self.folder)!r}): expected batch(positions) before each "
                f"forward pass, as all samples are tracked, found step {self.steps} without it; "
                "call it, or name the samples to track in sensitive="
            )
        if self._positions and _first_process():
            parameters, buffers = logged_tensors(self._model)
            now = {**parameters, **buffers}
            changes = {name: change(now[name], old) for name, old in self._before.items()}
            rate = float(self._optimizer.param_groups[0]["lr"])
            file = self.folder / f"step-{self.steps:09d}.safetensors"
            partial = file.with_suffix(".partial")
            save_file(
                {name: moved for name, moved in changes.items() if bool(moved.any())},
                partial,
                metadata={"positions": json.dumps(sorted(self._positions)), "lr": repr(rate)},
            )
            partial.rename(file)
            self._outside = copies(not_held(trainable(parameters), self._optimizer))
        self.steps += 1
        self._positions, self._before, self._started = set(), {}, False

    def _check_outside(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise when a weight moved after a logged step that another optimiser holds."""
        moved = [
            name
            for name, old in self._outside.items()
            if not parameters[name].detach().to(old.device, old.dtype).equal(old)
        ]
        self._outside = {}
        if moved:
            raise DataError(
                f"AmnesiacLog(folder={str(self.folder)!r}): expected an optimizer that holds every "
                f"weight that training moves, found {len(moved)} that moved without its step, the "
                f"first of them {moved[0]}; pass one optimizer over all of them, or of several the "
                "one that steps last"
            )

    def _open(self, resume: bool | int) -> int:
        """Write the header, or hold it against this model; return the number of the next step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not _first_process():  # only one of them writes
            return int(resume)
        parameters, buffers = logged_tensors(self._model)
        tensors = {**parameters, **buffers}
        header: dict[str, object] = {
            "version": VERSION,
            "tracked": _described(self._sensitive),
            "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        }
        if self._samples is not None:
            header["samples"] = self._samples
        return open_log(
            self.folder, header, resume=resume, weights=lambda: weights_digest(self._model)
        )


class Numbered(Dataset[Any]):
    """A data set whose samples also carry their position, for ``AmnesiacLog.batch``.

    A sample that is a mapping gets one more entry, a tuple one more element at its end.

    Args:
        data: the data set.
        key: name of the entry.
    """

    def __init__(self, data: Dataset[Any], key: str = "positions") -> None:
        self.data = data
        self.key = key

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]  # map-style data sets have a length

    def __getitem__(self, index: int) -> dict[str, object] | tuple[object, ...]:
        sample = self.data[index]
        if isinstance(sample, Mapping):
            return {**sample, self.key: index}
        return (*sample, index)


def practise(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], folder: str
) -> dict[str, object]:
    """Train ``model`` for one epoch of large steps on pairs (images, labels), all of them logged.

    The contract tests make a log so; positions count through the batches.

    Returns:
        Settings for ``amnesiac``, for whichever toy model it then takes the steps from.
    """
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    device = next(model.parameters()).device
    model.train()
    start = 0
    with AmnesiacLog(model, optimizer, folder) as log:
        for images, labels in batches:
            log.batch(range(start, start + len(labels)))
            start += len(labels)
            optimizer.zero_grad()
            logits = model(images.to(device))
            nn.functional.cross_entropy(logits, labels.to(device)).backward()
            optimizer.step()
    return {"log": folder, "forgotten": ()}


def _positions_of(sensitive: Sensitive) -> frozenset[int] | Callable[[int], bool] | None:
    """Return positions as plain integers, read once; a function or ``None`` as it is."""
    if sensitive is None or callable(sensitive):
        return sensitive
    try:
        listed = sensitive.tolist() if isinstance(sensitive, Tensor) else sensitive
        return frozenset(index(position) for position in listed)
    except TypeError as error:
        raise DataError(
            f"AmnesiacLog(sensitive={sensitive!r}): expected positions in the data set, or a "
            f"function that says of one whether it is tracked, found {error}; leave it out to "
            "track all"
        ) from error


def _described(sensitive: frozenset[int] | Callable[[int], bool] | None) -> object:
    if sensitive is None:
        return "all"
    return "function" if callable(sensitive) else sorted(sensitive)


def _first_process() -> bool:
    return not _several_processes() or torch.distributed.get_rank() == 0


def _several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized()


def _over_processes(found: set[int]) -> set[int]:
    """Return the union over processes: one step is made from all their batches."""
    if not _several_processes():
        return found
    shares: list[set[int]] = [set() for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, found)
    return set().union(*shares)
