"""Progress of a run in a folder: written after epochs, found when the same request comes again.

One safetensors file for each process and moment, a JSON record in its metadata; no code in a file
is ever run. What identifies a request is in the name of its files, so that another request, model
or data set in the same folder begins anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forgetkit.data.set_digest import set_digest
from forgetkit.engine.session import accelerator_states
from forgetkit.errors import BadHyperparameter, DataError
from forgetkit.fingerprint import digest, fingerprint, model_prints
from forgetkit.whole_files import written_whole

if TYPE_CHECKING:
    from forgetkit.api import Request
    from forgetkit.engine.guard import Guard
    from forgetkit.engine.place import Place
    from forgetkit.engine.preparing import Prepared
    from forgetkit.types import SampleSet

logger = logging.getLogger("forgetkit")

FORMAT = "forgetkit.progress/1"


@dataclass(frozen=True)
class Saved:
    """What a run had reached.

    Args:
        epochs: how many were done.
        tensors: all that is a tensor, by name, in their order.
        record: all else, ready for JSON.
    """

    epochs: int
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


class Progress:
    """The files of one request in a folder.

    Args:
        folder: made where there is none.
        key: what identifies the request.
        place: with the processes, each of which has files of its own.
        most: largest number of epochs.

    Raises:
        BadHyperparameter: the folder cannot be made.
    """

    def __init__(self, folder: Path, key: str, place: Place, most: int) -> None:
        self.folder = folder
        self._name = f"{key[:16]}-{place.rank + 1}of{place.world}-"
        self._place = place
        self._most = most
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadHyperparameter(
                f"resumable({str(folder)!r}): expected a folder that can be written, found "
                f"{type(error).__name__}: {error}; name another one"
            ) from error

    def found(self) -> Saved | None:
        """Return the latest moment of which all processes have a file.

        Raises:
            DataError: its file is damaged.
        """
        own = self._files()
        have = torch.zeros(self._most + 1)
        have[[epochs for epochs in own if epochs <= self._most]] = 1
        everywhere = (self._place.total(have) == self._place.world).nonzero()[:, 0].tolist()
        return _read(own[max(everywhere)]) if everywhere else None

    def save(self, saved: Saved) -> None:
        """Write a moment in one step, and drop those that no process will go back to.

        A process can be one moment ahead of another one when both are interrupted.
        """
        path = self.folder / f"{self._name}{saved.epochs:05d}.safetensors"
        tensors = {n: t.detach().cpu().contiguous().clone() for n, t in saved.tensors.items()}
        header = {"epochs": saved.epochs, "names": list(tensors), "record": saved.record}
        earlier = sorted(self._files().items())
        with written_whole(path) as partial:
            save_file(tensors, partial, metadata={"format": FORMAT, "header": json.dumps(header)})
        kept = 0 if self._place.world == 1 else 1
        for _, file in earlier[: len(earlier) - kept]:
            if file != path:
                file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the request's files: the run has ended."""
        for file in self._files().values():
            file.unlink(missing_ok=True)

    def _files(self) -> dict[int, Path]:
        """Return the files of this process by the number of epochs."""
        files = self.folder.glob(f"{self._name}*.safetensors")
        return {int(file.stem.removeprefix(self._name)): file for file in files}


def _read(path: Path) -> Saved:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            header = json.loads(metadata["header"])
            tensors = {name: stored.get_tensor(name) for name in header["names"]}
        return Saved(int(header["epochs"]), tensors, header["record"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"path {path}: expected the progress of a run, found something else ({error}); delete "
            "the file, and the run begins anew"
        ) from error


def progress_of(
    request: Request, prepared: Prepared, place: Place, guard: Guard | None
) -> Progress | None:
    """Return where a request keeps its progress, ``None`` where it does not.

    Raises:
        BadHyperparameter: the folder cannot be made.
    """
    if request.progress_folder is None:
        return None
    most = getattr(prepared.method, "epochs", 0)
    return Progress(request.progress_folder, _key(request, prepared, place, guard), place, most)


def _key(request: Request, prepared: Prepared, place: Place, guard: Guard | None) -> str:
    """Return a SHA-256 of all that the course of a run depends on, but for the rest of the images.

    Of each set, the labels and positions of all samples count, and the images of the first batch.
    """
    sets: dict[str, SampleSet | None] = {
        "forget": prepared.sets.forget, "retain": prepared.sets.retain, **prepared.validation,
    }  # fmt: skip
    initial = request.initial
    described = {
        "version": importlib.metadata.version("forgetkit"),
        "method": prepared.method.to_json(),
        "goal": prepared.goal.to_json(),
        "seed": request.random_seed,
        "accumulate": request.accumulate,
        "head": request.head_name,
        "guard": None if guard is None else asdict(guard),
        "where": [
            place.device.type,
            place.precision,
            place.world,
            len(accelerator_states()),
        ],
        "model": digest(model_prints(prepared.model)),
        "initial": digest(fingerprint(initial)) if isinstance(initial, Mapping) else bool(initial),
        "sets": {
            name: _print_of(samples, look=not prepared.random_inputs)
            for name, samples in sets.items()
            if samples is not None
        },
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _print_of(samples: SampleSet, *, look: bool) -> list[str]:
    described = json.dumps([samples.positions.tolist(), samples.labels.tolist()])
    whole = hashlib.sha256(described.encode()).hexdigest()
    few = torch.arange(min(samples.batch_size, len(samples)))
    return [whole, set_digest(samples.take(few))] if look else [whole]
