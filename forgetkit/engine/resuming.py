"""Progress of a run in a folder: written after epochs, found when the same request comes again.

One safetensors file for each process and moment, a JSON record in its metadata; no code in a file
is ever run. What identifies a request is in the name of its files, so that another request, model
or data set in the same folder begins anew.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forgetkit.engine.request_key import request_key
from forgetkit.errors import BadHyperparameter, DataError
from forgetkit.fingerprint import digest, fingerprint
from forgetkit.whole_files import to_disk

if TYPE_CHECKING:
    from forgetkit.api import Request
    from forgetkit.engine.guard import Guard
    from forgetkit.engine.place import Place
    from forgetkit.engine.preparing import Prepared

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
        BadHyperparameter: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str, place: Place, most: int) -> None:
        self.folder = folder
        self._process = f"-{place.rank + 1}of{place.world}-"
        self._key = key[:16]
        self._name = f"{self._key}{self._process}"
        self._staging = folder / f".{self._name}partial"
        self._place = place
        self._most = most
        try:
            with self._staged() as part:
                part.write_text("can be written")
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

    def of_others(self) -> int:
        """Return how many other requests have files of this process in the folder."""
        files = (file for file in self.folder.glob("*.safetensors") if self._process in file.name)
        return len({file.name.partition("-")[0] for file in files} - {self._key})

    def save(self, saved: Saved) -> None:
        """Write a moment in one step, and drop those that no process will go back to.

        A process can be one moment ahead of another one when both are interrupted.

        Raises:
            OSError: it cannot be written; what was there stays.
        """
        path = self.folder / f"{self._name}{saved.epochs:05d}.safetensors"
        tensors = {n: t.detach().cpu() for n, t in saved.tensors.items()}
        pairs = [name for name, tensor in tensors.items() if tensor.is_complex()]
        tensors |= {name: torch.view_as_real(tensors[name].resolve_conj()) for name in pairs}
        tensors = {n: t.contiguous().clone() for n, t in tensors.items()}
        header = {
            "epochs": saved.epochs, "names": list(tensors), "complex": pairs,
            "digest": digest(fingerprint(tensors)), "record": saved.record,
        }  # fmt: skip
        with self._staged() as part:
            try:
                save_file(tensors, part, metadata={"format": FORMAT, "header": json.dumps(header)})
            except SafetensorError as error:
                raise OSError(str(error)) from error
            to_disk(part)  # else a machine that goes away can leave an empty file
            part.replace(path)
        earlier = [file for epochs, file in sorted(self._files().items()) if epochs < saved.epochs]
        kept = 0 if self._place.world == 1 else 1
        for file in earlier[: len(earlier) - kept]:
            file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the request's files: the run has ended."""
        for file in self._files().values():
            file.unlink(missing_ok=True)

    def _files(self) -> dict[int, Path]:
        """Return the files of this process by the number of epochs."""
        form = re.compile(re.escape(self._name) + r"(\d{5})\.safetensors")
        found = ((form.fullmatch(file.name), file) for file in self.folder.iterdir())
        return {int(match[1]): file for match, file in found if match is not None}

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """Yield a name in a folder of its own, which goes with all that a writer leaves there."""
        shutil.rmtree(self._staging, ignore_errors=True)  # of a process that was killed
        self._staging.mkdir(parents=True)
        try:
            yield self._staging / "moment"
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)


def _read(path: Path) -> Saved:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            header = json.loads(metadata["header"])
            tensors = {name: stored.get_tensor(name) for name in header["names"]}
        if digest(fingerprint(tensors)) != header["digest"]:
            raise ValueError("its tensors are not those that were written")
        for name in header["complex"]:  # copied, because a file aligns pairs like single numbers
            tensors[name] = torch.view_as_complex(tensors[name].clone())
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
        BadHyperparameter: the folder cannot be written.
    """
    if request.progress_folder is None:
        return None
    most = getattr(prepared.method, "epochs", 0)
    key = request_key(request, prepared, place, guard)
    return Progress(request.progress_folder, key, place, most)
