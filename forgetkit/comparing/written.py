"""The folder of a comparison: one file a finished run, each whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from forgetkit.errors import DataError

SCHEMA = 1
HEADER = "comparison.json"


@dataclass(frozen=True)
class RunRecord:
    """One run that has ended.

    Attributes:
        title: the row's name.
        method: registered name and hyper-parameters, defaults filled in.
        goal: what was to be forgotten, as a record.
        target: the same in words.
        seed: of every random choice.
        scores: accuracies in percent by D_r, D_f, D_tr, D_tf as far as there are such samples,
            US in [0, 1], and seconds without measuring; empty for a run that failed.
        stopped_because: one sentence of the run.
        error: why it failed, or an empty text.
        identity: what makes this run this run: model, data, settings, seed, version.
    """

    title: str
    method: Mapping[str, object]
    goal: Mapping[str, object]
    target: str
    seed: int
    scores: Mapping[str, float] = field(default_factory=dict)
    stopped_because: str = ""
    error: str = ""
    identity: Mapping[str, object] = field(default_factory=dict)


def digest(record: object) -> str:
    """Return the SHA-256 of a record of plain values."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that, whenever the process is killed, the old or the new text is there."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(path)
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk only once its folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RunFolder:
    """Runs by identity; with no path they are kept in memory for the duration of one call.

    Args:
        path: created when it does not exist; ``None`` writes nothing.
        model: SHA-256 of the model that the folder is for.

    Raises:
        DataError: the folder holds runs of another model, or something else.
    """

    def __init__(self, path: Path | None, model: str) -> None:
        self.path = path
        if path is None:
            return
        if path.exists() and not path.is_dir():
            raise DataError(
                f"out={str(path)!r}: expected a folder, found a file; name a folder of its own for "
                "this comparison"
            )
        self._runs.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self._open(path / HEADER, model)

    def _open(self, header: Path, model: str) -> None:
        if not header.exists():
            if any(self._runs.glob("*.json")):
                raise DataError(
                    f"out={str(self.path)!r}: expected {HEADER} beside the runs, found runs "
                    "without it; put it back, or name another folder"
                )
            write_whole(header, json.dumps({"schema": SCHEMA, "model": model}, indent=2) + "\n")
        found = _read(header)
        if found.get("schema") != SCHEMA or found.get("model") != model:
            raise DataError(
                f"out={str(self.path)!r}: expected runs of this model (SHA-256 {model[:12]}...), "
                f"found a folder made for another one ({str(found.get('model'))[:12]}...); name "
                "another folder, or load the model that it was made for"
            )

    @property
    def _runs(self) -> Path:
        return (self.path or Path()) / "runs"

    def find(self, identity: Mapping[str, object], name: str) -> RunRecord | None:
        """Return the run of this identity, if it has ended before.

        Raises:
            DataError: its file holds something else.
        """
        file = self._file(identity, name)
        if self.path is None or not file.exists():
            return None
        found = _read(file)
        if found.get("identity") != json.loads(json.dumps(identity)):
            raise DataError(f"{file}: expected {_EXPECTED}, found another one; remove the file")
        try:
            return RunRecord(**found)  # type: ignore[arg-type]  # what keep() wrote
        except TypeError as error:
            raise DataError(f"{file}: expected {_EXPECTED}, found {error}; remove it") from error

    def keep(self, run: RunRecord, name: str) -> None:
        """Write a finished run."""
        if self.path is not None:
            text = json.dumps(asdict(run), indent=2, allow_nan=False)
            write_whole(self._file(run.identity, name), text + "\n")

    def drop(self, identity: Mapping[str, object], name: str) -> None:
        """Remove a run, so that it is made again."""
        if self.path is not None:
            self._file(identity, name).unlink(missing_ok=True)

    @contextmanager
    def claim(self, identity: Mapping[str, object], name: str) -> Iterator[bool]:
        """Yield whether this process may make the run now, because no other one is at it.

        The system gives a claim back when its process ends, however it ends: no claim outlives a
        kill, and none has to be cleared away by hand.
        """
        if self.path is None:
            yield True
            return
        file = self._claim_file(identity, name)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            with suppress(PermissionError):  # Windows keeps a file that is open
                file.unlink(missing_ok=True)
            lock.release()

    def tidy(self, identity: Mapping[str, object], name: str) -> None:
        """Remove the claim's file of a run that has ended, if a kill right after it left one."""
        if self.path is not None and self._claim_file(identity, name).exists():
            with self.claim(identity, name):
                pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time write what belongs to the whole folder."""
        if self.path is None:
            yield
            return
        with FileLock(self.path / "runs" / ".lock"):
            yield

    def _claim_file(self, identity: Mapping[str, object], name: str) -> Path:
        return self._file(identity, name).with_suffix(".lock")

    def _file(self, identity: Mapping[str, object], name: str) -> Path:
        short = re.sub(r"[^A-Za-z0-9=.,_-]+", "-", name)[:80].strip("-.")
        return self._runs / f"{short}-{digest(identity)[:16]}.json"


_EXPECTED = "the record of the run that its name stands for"


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{file}: expected a JSON record, found something else ({error}); remove the file, and "
            "what it stood for is made again"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{file}: expected a JSON record, found {found!r}; remove the file")
    return found
