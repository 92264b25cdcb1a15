"""Reading what ``forgetkit.training_log`` wrote during training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from forgetkit.errors import DataError
from forgetkit.types import Place

HEADER = "log.json"
VERSION = 1
LEFT = "left"
"""Entry of the header: the digest of the weights that training left, once the log is closed."""


@dataclass(frozen=True)
class LoggedStep:
    """One file of a log.

    Args:
        file: holds the change of each tensor by plain name.
        positions: tracked samples of the step's batch.
        lr: learning rate of the step.
    """

    file: Path
    positions: frozenset[int]
    lr: float


class WrittenLog:
    """A log that training has left.

    Args:
        folder: what ``AmnesiacLog`` was given.

    Raises:
        DataError: there is no log, or one of its files cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            header = json.loads((self.folder / HEADER).read_text(encoding="utf-8"))
            self.steps = [_read_step(file) for file in step_files(self.folder)]
            tracked = header["tracked"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(
                f"log={str(folder)!r}: expected the folder that AmnesiacLog wrote, found "
                f"{type(error).__name__}: {error}; pass the folder that training logged to"
            ) from error
        self._tracked = frozenset(tracked) if isinstance(tracked, list) else tracked
        self.samples: int | None = header.get("samples")
        self.left: str | None = header.get(LEFT)
        self.shapes = {name: tuple(shape) for name, shape in header["tensors"].items()}

    def located(self, places: Sequence[Place]) -> list[int]:
        """Return positions in the data set that was trained on.

        It is the one of the size that the log states. A log without a size must be of one that
        has room for every position in it, and if only some samples were tracked, of the only one.

        Args:
            places: where the samples stand in each data set that may have been meant.

        Raises:
            DataError: none of them can be that data set, or several can.
        """
        logged = {p for step in self.steps for p in step.positions}
        if isinstance(self._tracked, frozenset):
            logged |= self._tracked
        least = max(logged, default=-1) + 1
        if self.samples is not None:
            fit = [place for place in places if place.size == self.samples][:1]
            wanted = f"a data set of the {self.samples} samples that were trained on"
        else:
            fit = [place for place in places if place.size >= least]
            exact = [place for place in fit if place.size == least]
            fit = exact[:1] if self._tracked == "all" and exact else fit
            wanted = f"one data set with room for the logged positions, up to {least - 1}"
        if len(fit) == 1:
            return [int(position) for position in fit[0].positions.tolist()]
        found = " in ".join(f"one of {place.size}" for place in places)
        raise DataError(
            f"log={str(self.folder)!r}: expected {wanted}, found {found} behind the loader; pass a "
            "loader over the training set with .instances(positions), or over a "
            "torch.utils.data.Subset of it, and give AmnesiacLog samples=len(training set)"
        )

    def covering(self, positions: Iterable[int]) -> list[LoggedStep]:
        """Return the steps whose batch held one of these samples.

        Raises:
            DataError: a sample was not tracked, so that its steps were not all logged.
        """
        wanted = frozenset(positions)
        seen = frozenset[int]().union(*(step.positions for step in self.steps))
        known = {"all": wanted, "function": seen}.get(str(self._tracked), self._tracked)
        if missing := sorted(wanted - frozenset(known)):
            raise DataError(
                f"log={str(self.folder)!r}: expected a log that tracks every sample to forget, "
                f"found none of {len(missing)} of them in it, the first at position {missing[0]}; "
                "forget tracked samples only, or use a method that needs no log"
            )
        return [step for step in self.steps if step.positions & wanted]

    def total(self, steps: Iterable[LoggedStep]) -> dict[str, Tensor]:
        """Return the sum of the changes by tensor, in float64 on the CPU."""
        sums: dict[str, Tensor] = {}
        for step in steps:
            with safe_open(step.file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  not a mapping
                    change = opened.get_tensor(name).double()
                    sums[name] = sums[name].add_(change) if name in sums else change
        return sums


def step_files(folder: Path) -> list[Path]:
    """Return the files of a log in the order of their steps."""
    return sorted(folder.glob("step-*.safetensors"))


def _read_step(file: Path) -> LoggedStep:
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    return LoggedStep(file, frozenset(json.loads(about["positions"])), float(about["lr"]))
