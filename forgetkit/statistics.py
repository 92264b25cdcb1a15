"""Statistics of a training set that a later request can use instead of the retained data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from forgetkit.convolution_cuts import Cut
from forgetkit.copying import independent_copy
from forgetkit.data.loaders import Loader
from forgetkit.data.measured import (
    count_of,
    inputs_of,
    of_shape,
    sample_shape,
    warn_of_augmentation,
)
from forgetkit.data.randomness import random_state_kept
from forgetkit.engine.modes import evaluating
from forgetkit.engine.surroundings import own_surroundings
from forgetkit.errors import DataError, MissingFile, ModelError
from forgetkit.fingerprint import digest, model_prints
from forgetkit.layer_survey import Forward, Layer
from forgetkit.method import Method
from forgetkit.model_errors import in_one_sentence
from forgetkit.moment_measuring import (
    WIDEST,
    Products,
    check_options,
    plain_forward,
    plan,
    total,
)
from forgetkit.moments import Moments
from forgetkit.types import Inputs
from forgetkit.whole_files import path_of, written_whole

if TYPE_CHECKING:
    from forgetkit.result import Result

logger = logging.getLogger("forgetkit")

FORMAT = "forgetkit.statistics/1"


@dataclass(frozen=True)
class Statistics:
    """Second moments of the inputs of every convolution and linear layer, over a data set.

    Made once while the training set is at hand, they let ``pgu`` forget later without it: the
    moments of the images to forget are subtracted, what is left describes the others. The file
    holds sums over all images, for each layer a symmetric matrix; no image and no row of a single
    image can be read from it, but it is derived from the data: treat it like the model itself.

    Args:
        moments: the sums, by the name of the weight.
        architecture: SHA-256 over names and shapes of the model's parameters.
        inputs: shape of one sample as the model gets it, batch axis left out.
        products: precision of the products: ``"double"`` or ``"single"``.
        requests: how often images were taken out again: the requests served so far.
        weights: SHA-256 over the tensors of the model that the sums are of, where that is known:
            the model measured, or the one that a run given to ``without`` left.
    """

    moments: Moments
    architecture: str
    inputs: tuple[int, ...]
    products: Products = "double"
    requests: int = 0
    weights: str | None = None

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        loader: Loader,
        *,
        positions: str | float = "auto",
        max_dim: int = WIDEST,
        products: Products = "double",
        dense_patches: bool = False,
    ) -> Statistics:
        """Measure the layer inputs of a model over everything in a loader, in eval mode.

        Use the transform with which images will be given to be forgotten, without random
        augmentation (which a warning tells of, where samples can be read twice): only then are
        their moments exactly part of these. The model is left as it was.

        Args:
            model: the classifier, on the device where it should run.
            loader: the training set.
            positions: rows (patches, tokens) that an image gives to each layer: ``"all"``, a
                number, or ``"auto"`` for all while this costs little beside the forward pass, and
                else so many that it does (about 1.5 times the plain pass over many images; a
                layer gets some 2 000 rows in all, however few the images, unless they come from a
                stream, whose length is not known).
            max_dim: layers with longer rows are left out; ``pgu`` will not change them.
            products: ``"single"`` where double precision is very slow (most graphics cards);
                the noise of sums is then 1e-6 of the strongest direction.
            dense_patches: cut patches at every place of a convolution's input, as PGU's authors
                do, instead of with its own stride and dilation; stride squared times as many.

        Raises:
            DataError: the loader holds nothing or its batches cannot be used.
            ModelError: no layer of the model can be measured.
            BadHyperparameter: ``positions``, ``max_dim`` or ``products`` is out of range.
        """
        from forgetkit.adapting import unwrap

        check_options(positions, max_dim, products)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"collect({model!r}): expected a torch.nn.Module, found {type(model).__name__}; "
                "pass the model itself, for instance forgetkit.load_model(...)"
            )
        bare = unwrap(model)
        with _looking_at(bare):
            batches = inputs_of(loader)
            first = next(batches, None)
            if first is None:
                raise DataError("loader: expected samples, found none; pass the whole training set")
            warn_of_augmentation(loader)
            weights, forward = dict(bare.named_parameters()), plain_forward(bare)
            shape = sample_shape(first)
            layers = plan(
                weights, first, forward, positions=positions, max_dim=max_dim, products=products,
                dense_patches=dense_patches, images=count_of(loader),
            )  # fmt: skip
            every = of_shape(shape, chain([first], batches))
            moments = total(weights, layers, every, forward, products=products)
        known = digest(model_prints(bare))
        return cls(moments, architecture_of(bare), shape, products, weights=known)

    @property
    def samples(self) -> int:
        """Images that are in the sums."""
        return self.moments.samples

    @property
    def complete(self) -> bool:
        """Whether every row of every image was taken (else only some of each image)."""
        return all(layer.taken is None for layer in self.moments.layers.values())

    @property
    def dense_patches(self) -> bool:
        """Whether patches were cut at every place, whatever stride and dilation of the layer."""
        return any(layer.dense for layer in self.moments.layers.values())

    def subtract(self, model: nn.Module, loader: Loader) -> Statistics:
        """Return the statistics without the images of a loader, seen through this model.

        The model must be the one *before* it forgets them. After a run, use ``without``.

        Raises:
            ModelError: the statistics belong to another architecture.
            DataError: the loader cannot be used, or holds more images than there are.
        """
        from forgetkit.adapting import unwrap

        bare = unwrap(model)
        self.check(bare)
        with _looking_at(bare):
            part = self.part(bare, inputs_of(loader), plain_forward(bare))
        return self._less(part, None)

    def without(self, result: Result, loader: Loader) -> Statistics:
        """Return the statistics without what a run forgot: the input of the next request.

        The moments to take away are those of the model *before* the run; they are computed on a
        copy with the edit undone, so the model itself is not touched. A run that was rolled back
        forgot nothing and changes nothing here. Samples whose labels were corrected stay in the
        training set, and so do their moments.

        Args:
            result: of the run, its model holding the edit still.
            loader: the one that the run was given.

        Raises:
            PatchMismatch: the model was changed again after the run.
            DataError: the loader holds another number of samples to forget than that of the run.
            ModelError: the statistics belong to another architecture.
        """
        from forgetkit.adapting import unwrap
        from forgetkit.data.split import split

        if result.rolled_back:
            logger.info("without(): the run was rolled back, so the statistics stay as they are")
            return self
        now = digest(model_prints(unwrap(result.model)))
        before = independent_copy(unwrap(result.model))
        result.patch.revert(before)
        self.check(before)
        if result.goal.kind == "relabel":
            return replace(self, weights=now)
        with _looking_at(before):
            # the run has checked the labels against the number of classes
            sets = split(
                loader, result.goal, num_classes=2**31, forget_classes=result.forget_classes,
                spare=0,
            )  # fmt: skip
            forgotten = result.samples.get("forget", len(sets.forget))
            whole = type(result.method).choose is Method.choose
            whole = whole or getattr(result.method, "share", None) == 1.0
            if whole and forgotten != len(sets.forget):
                raise DataError(
                    f"without(): expected the loader of the run, which forgot {forgotten} samples, "
                    f"found {len(sets.forget)} of them in this one; pass the loader of that run"
                )
            batches = (batch.inputs for batch in sets.forget.batches())
            part = self.part(before, batches, plain_forward(before))
        return self._less(part, now)

    def _less(self, part: Moments, weights: str | None) -> Statistics:
        rest = self.moments.minus(part)
        return replace(self, moments=rest, requests=self.requests + 1, weights=weights)

    def part(self, model: nn.Module, batches: Iterable[Inputs], forward: Forward) -> Moments:
        """Return the moments of some batches, measured as these were.

        Raises:
            DataError: the images have another shape than those of the statistics.
        """
        weights = dict(model.named_parameters())
        return total(
            weights, self.moments.layers, of_shape(self.inputs, batches), forward,
            products=self.products,
        )  # fmt: skip

    def check(self, model: nn.Module) -> None:
        """Refuse a model of another architecture.

        Raises:
            ModelError: names or shapes of its parameters differ.
        """
        if architecture_of(model) == self.architecture:
            return
        found = {name: len(weight) for name, weight in model.named_parameters()}
        missing = [name for name in self.moments.layers if name not in found]
        detail = f"no weight {missing[0]!r}" if missing else "parameters of other names or shapes"
        raise ModelError(
            f"statistics: expected the architecture that they were made with, found "
            f"{type(model).__name__} with {detail}; collect them anew for this model"
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, replacing a file of this name in one step; return it.

        The folder is made where there is none.

        Raises:
            OSError: the folder cannot be written.
        """
        target = path_of(path, "path")
        header = {
            "architecture": self.architecture,
            "inputs": list(self.inputs),
            "products": self.products,
            "requests": self.requests,
            "weights": self.weights,
            "samples": self.moments.samples,
            "rows": self.moments.rows,
            "layers": {name: asdict(layer) for name, layer in self.moments.layers.items()},
        }
        sums = {name: t.detach().cpu().contiguous() for name, t in self.moments.sums.items()}
        with written_whole(target) as partial:
            save_file(sums, partial, metadata={"format": FORMAT, "header": json.dumps(header)})
        return target

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read statistics; no code in the file is ever run.

        Raises:
            MissingFile: there is no such file.
            DataError: the file holds something else, or is damaged.
        """
        source = path_of(path, "path")
        if not source.is_file():
            raise MissingFile(
                f"path {source}: expected a file of statistics, found none; make it with "
                "Statistics.collect(model, loader).save(path)"
            )
        try:
            with safe_open(source, framework="pt") as stored:
                metadata = stored.metadata() or {}
                sums = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            return _from_header(json.loads(metadata["header"]), sums)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"path {source}: expected a file written by Statistics.save, found something else "
                f"({error}); collect the statistics anew"
            ) from error

    def __repr__(self) -> str:
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.moments.sums.values())
        some = "" if self.complete else ", some rows of each image"
        return (
            f"Statistics({self.samples} images, {len(self.moments.layers)} layers, "
            f"{size / 1e6:.1f} MB{some})"
        )


def architecture_of(model: nn.Module) -> str:
    """Return a SHA-256 over names and shapes of the parameters."""
    shapes = sorted((name, list(p.shape)) for name, p in model.named_parameters())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


@contextmanager
def _looking_at(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and nothing of what surrounds the caller for the block."""
    with (
        random_state_kept(),
        own_surroundings(),
        torch.no_grad(),
        evaluating(model),
        in_one_sentence("statistics"),
    ):
        yield


def _from_header(header: Mapping[str, object], sums: dict[str, Tensor]) -> Statistics:
    record: dict[str, dict[str, object]] = header["layers"]  # type: ignore[assignment]  # JSON
    layers = {name: _layer(dict(fields)) for name, fields in record.items()}
    for name, layer in layers.items():
        shape = (layer.groups, layer.width, layer.width)
        if tuple(sums[name].shape) != shape or sums[name].dtype != torch.float64:
            raise ValueError(f"{name} is not a float64 tensor of shape {shape}")
    sums = {name: sums[name] for name in layers}  # the file sorts them: in the order of calls again
    rows: dict[str, int] = header["rows"]  # type: ignore[assignment]  # JSON
    inputs: list[int] = header["inputs"]  # type: ignore[assignment]  # JSON
    products: Products = "single" if header["products"] == "single" else "double"
    moments = Moments(layers, sums, dict(rows), int(str(header["samples"])))
    requests = int(str(header.get("requests", 0)))  # absent in files of before they were counted
    weights = header.get("weights")
    return Statistics(
        moments, str(header["architecture"]), tuple(inputs), products, requests,
        None if weights is None else str(weights),
    )  # fmt: skip


def _layer(fields: dict[str, object]) -> Layer:
    cut = fields.pop("cut")
    if isinstance(cut, dict):
        cut = Cut(**{k: tuple(v) if isinstance(v, list) else v for k, v in cut.items()})  # type: ignore[arg-type]  # of asdict()
    return Layer(cut=cut, **fields)  # type: ignore[arg-type]  # the fields of asdict()
