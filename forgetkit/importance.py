"""How much each weight matters to a set of samples, measured now or read from a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from forgetkit.curvature import (
    batch_squared_gradients,
    mean_absolute_gradients,
    mean_squared_gradients,
    squared_norm,
    sum_of_gradients,
)
from forgetkit.errors import DataError
from forgetkit.fingerprint import plain_names
from forgetkit.losses import cross_entropy
from forgetkit.per_sample import LogitsOf, Parameters, wide_type
from forgetkit.types import SampleSet

KINDS = ("cross_entropy", "squared_norm")
FORMS = ("sample", "batch")
_MARK = "forgetkit importance 1"


@dataclass(frozen=True)
class Importance:
    """The importance of every weight to a set.

    Args:
        values: not negative, by parameter name, in the parameter's shape.
        samples: size of the set.
        batches: number of batches it was read in.
        kind: ``"cross_entropy"``: squared gradient of the loss; ``"squared_norm"``: absolute
            gradient of the squared l2 norm of the logits, without labels.
        form: mean over samples (``"sample"``), or over batches of what the gradient of the batch
            mean gives (``"batch"``), which depends on the batch size.
    """

    values: Mapping[str, Tensor]
    samples: int
    batches: int
    kind: str
    form: str

    def joined(self, other: Importance) -> Importance:
        """Return the importance to the union with a disjoint set, weighted by counts."""
        weights = [
            float(one.samples if self.form == "sample" else one.batches) for one in (self, other)
        ]
        total = sum(weights)
        values = {}
        for name, own in self.values.items():
            wide = wide_type(own.device)
            added = own.to(wide) * weights[0] + other.values[name].to(wide) * weights[1]
            values[name] = (added / total).to(own.dtype)
        return dataclasses.replace(
            self,
            values=values,
            samples=self.samples + other.samples,
            batches=self.batches + other.batches,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that ``load`` and the dampening methods read."""
        names = plain_names(self.values)
        about = {
            "about": _MARK,
            "samples": str(self.samples),
            "batches": str(self.batches),
            "kind": self.kind,
            "form": self.form,
        }
        tensors = {names[name]: value.cpu().contiguous() for name, value in self.values.items()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=about)

    @staticmethod
    def load(
        path: str | os.PathLike[str], parameters: Parameters, others: Iterable[str] = ()
    ) -> Importance:
        """Read a file for these parameters, on their devices.

        Args:
            path: of the file.
            parameters: those whose importance is needed, by name.
            others: names of further weights of the model, such as frozen ones.

        Raises:
            DataError: the file cannot be read, was not written by ``save``, or belongs to another
                model.
        """
        try:
            with safe_open(Path(path), "pt") as opened:
                about = opened.metadata() or {}
                stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"importance_file={str(path)!r}: expected a file that Importance.save wrote, found "
                f"{type(error).__name__}: {error}; pass the path of such a file"
            ) from error
        if about.get("about") != _MARK:
            raise DataError(
                f"importance_file={str(path)!r}: expected a file that Importance.save wrote, found "
                "another safetensors file; make it with "
                "forgetkit.importance_of(model, train_loader).save(path)"
            )
        foreign = sorted(stored.keys() - set(plain_names({*parameters, *others}).values()))
        if foreign:
            raise DataError(
                f"importance_file={str(path)!r}: expected weights of this model alone, found "
                f"{len(foreign)} others ({', '.join(foreign[:3])}); measure the importance of this "
                "very model"
            )
        values = {}
        for name, plain in plain_names(parameters).items():
            value = stored.get(plain)
            if value is None or value.shape != parameters[name].shape:
                found = "none" if value is None else f"shape {tuple(value.shape)}"
                raise DataError(
                    f"importance_file={str(path)!r}: expected {plain} of shape "
                    f"{tuple(parameters[name].shape)}, found {found}; measure the importance of "
                    "this very model"
                )
            values[name] = value.to(parameters[name].device)
        return Importance(
            values, int(about["samples"]), int(about["batches"]), about["kind"], about["form"]
        )


def measured(
    logits_of: LogitsOf,
    parameters: Parameters,
    samples: SampleSet,
    *,
    kind: str = "cross_entropy",
    form: str = "sample",
    batch_size: int | None = None,
) -> Importance:
    """Return the importance of every parameter to a set.

    Args:
        logits_of: the model as a function of its parameters and inputs, in eval mode.
        parameters: by name.
        samples: read once.
        kind: see ``Importance``.
        form: see ``Importance``.
        batch_size: samples of a batch, by default the set's; the result depends on it in batch
            form only.

    Raises:
        DataError: there are no parameters or no samples.
    """
    size = batch_size or samples.batch_size
    batches = samples.batches(size)
    if kind == "cross_entropy":
        reduce = mean_squared_gradients if form == "sample" else batch_squared_gradients
        values = reduce(logits_of, parameters, batches, loss=cross_entropy)
    elif form == "sample":
        values = mean_absolute_gradients(logits_of, parameters, batches, loss=squared_norm)
    else:
        values = _batch_absolute_gradients(logits_of, parameters, samples, size)
    return Importance(values, len(samples), -(-len(samples) // size), kind, form)


def _batch_absolute_gradients(
    logits_of: LogitsOf, parameters: Parameters, samples: SampleSet, size: int
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for batch in samples.batches(size):
        found = sum_of_gradients(logits_of, parameters, [batch], loss=squared_norm)
        for name, gradient in found.items():
            mean = (gradient / len(batch)).abs()
            sums[name] = sums.get(name, torch.zeros_like(mean)) + mean
    count = -(-len(samples) // size)
    return {name: total / count for name, total in sums.items()}


def of_forget_and_all(
    logits_of: LogitsOf,
    parameters: Parameters,
    forget: SampleSet,
    retain: SampleSet | None,
    *,
    kind: str,
    form: str,
    batch_size: int | None = None,
    file: str | None = None,
    model: nn.Module,
) -> tuple[Importance, Importance]:
    """Return the importance to D_f, and to D: D_f and D_r together, or what a file says.

    Raises:
        DataError: the file cannot be used, was measured in another way, or there is neither a
            file nor a D_r.
    """
    own = measured(logits_of, parameters, forget, kind=kind, form=form, batch_size=batch_size)
    if file is None:
        if retain is None:
            raise DataError(
                "importance_file: expected samples to keep or a file of importance, found neither; "
                "pass `.retain(loader)` or importance_file="
            )
        rest = measured(logits_of, parameters, retain, kind=kind, form=form, batch_size=batch_size)
        return own, own.joined(rest)
    stored = Importance.load(file, parameters, (name for name, _ in model.named_parameters()))
    if (stored.kind, stored.form) != (kind, form):
        raise DataError(
            f"importance_file={file!r}: expected importance of kind {kind} in form {form}, found "
            f"kind {stored.kind} in form {stored.form}; measure it in the form that is asked for"
        )
    return own, stored
