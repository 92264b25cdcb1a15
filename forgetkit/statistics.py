"""Statistics of a training set that a later request can use instead of the retained data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from forgetkit.convolution_cuts import Cut
from forgetkit.copying import independent_copy
from forgetkit.data.batches import Reader, batch_size
from forgetkit.data.loaders import Loader, covered, reading_of
from forgetkit.data.randomness import LOOKED_AT, random_state_kept, same
from forgetkit.data.sets import read_chunks
from forgetkit.engine.modes import evaluating
from forgetkit.engine.place import moved_inputs
from forgetkit.engine.surroundings import own_surroundings
from forgetkit.errors import BadHyperparameter, DataError, MissingFile, ModelError
from forgetkit.fingerprint import digest, model_prints
from forgetkit.layer_survey import Forward, Layer, survey, thinned, with_rows
from forgetkit.method import Method
from forgetkit.model_errors import in_one_sentence
from forgetkit.moments import Accumulator, Moments
from forgetkit.types import Inputs

if TYPE_CHECKING:
    from forgetkit.result import Result

logger = logging.getLogger("forgetkit")

FORMAT = "forgetkit.statistics/1"
WIDEST = 4608
"""Default limit of a row: a 3 x 3 convolution of 512 channels. Time grows with its cube."""

Products: TypeAlias = Literal["double", "single"]

FLOOR: Mapping[Products, float] = {"double": 1e-12, "single": 1e-6}
"""Eigenvalues below this part of the largest are rounding."""


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
            _warn_of_augmentation(loader)
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
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
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
        partial = target.with_name(target.name + ".partial")
        try:
            save_file(sums, partial, metadata={"format": FORMAT, "header": json.dumps(header)})
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read statistics; no code in the file is ever run.

        Raises:
            MissingFile: there is no such file.
            DataError: the file holds something else, or is damaged.
        """
        source = Path(path)
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


def plan(
    weights: Mapping[str, Tensor],
    example: Inputs,
    forward: Forward,
    *,
    positions: str | float = "auto",
    max_dim: int = WIDEST,
    products: Products = "double",
    dense_patches: bool = False,
    images: int | None = None,
) -> dict[str, Layer]:
    """Return what to measure; ``images`` is how many there will be, if that is known.

    Raises:
        ModelError: no layer can be measured.
    """
    found = survey(weights, example, forward, dense=dense_patches)
    outputs = {name: len(weights[name]) for name in found}
    return within(
        found, outputs, positions=positions, max_dim=max_dim, products=products, images=images
    )


def within(
    found: Mapping[str, Layer],
    outputs: Mapping[str, int],
    *,
    positions: str | float = "auto",
    max_dim: int = WIDEST,
    products: Products = "double",
    images: int | None = None,
) -> dict[str, Layer]:
    """Return those layers of a survey that are not too wide, with the rows that they shall give.

    Args:
        found: by ``survey``.
        outputs: output rows of each weight.
        positions: see ``Statistics.collect``.
        max_dim: the longest row.
        products: precision of the products.
        images: how many there will be, if that is known.

    Raises:
        ModelError: no layer can be measured.
    """
    layers = {name: layer for name, layer in found.items() if layer.width <= max_dim}
    if not found:
        raise ModelError(
            "statistics: expected convolutions or linear layers that multiply by parameters which "
            "may change, found none; unfreeze them with requires_grad_(True), fold weight or "
            "spectral normalisation, pruning and LoRA into them, or use another method"
        )
    if not layers:
        raise ModelError(
            f"statistics: expected convolutions or linear layers with rows up to {max_dim}, found "
            f"{len(found)} layers, all wider; raise max_dim or use another method"
        )
    wide = sorted(found.keys() - layers.keys())
    if wide:
        logger.warning(
            "statistics: %d layers have rows longer than max_dim=%d and will not be changed: %s",
            len(wide), max_dim, ", ".join(wide[:4]),
        )  # fmt: skip
    if positions == "all":
        return layers
    if isinstance(positions, str):
        return thinned(layers, outputs, double=products == "double", images=images)
    return with_rows(layers, float(positions))


def total(
    weights: Mapping[str, Tensor],
    layers: Mapping[str, Layer],
    batches: Iterable[Inputs],
    forward: Forward,
    *,
    products: Products = "double",
) -> Moments:
    """Return the moments of all batches; the model is in eval mode and gradients are off."""
    accumulator = Accumulator(weights, layers, double=products == "double")
    for inputs in batches:
        accumulator.add(inputs, forward)
    return accumulator.moments()


def architecture_of(model: nn.Module) -> str:
    """Return a SHA-256 over names and shapes of the parameters."""
    shapes = sorted((name, list(p.shape)) for name, p in model.named_parameters())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def of_shape(shape: tuple[int, ...], batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """Yield batches whose samples have one shape.

    Raises:
        DataError: a batch has another one.
    """
    for inputs in batches:
        found = sample_shape(inputs)
        if found != shape:
            raise DataError(
                f"statistics: expected images of shape {shape}, as the first ones have, found "
                f"{found}; use one transform, which makes all images equally large"
            )
        yield inputs


def sample_shape(inputs: Inputs) -> tuple[int, ...]:
    """Return the shape of one sample, of its first tensor."""
    first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return tuple(first.shape[1:])


def inputs_of(loader: Loader) -> Iterator[Inputs]:
    """Yield the inputs of every sample that a loader draws from, batch by batch, once each."""
    reader = Reader("loader", needs_labels=False)
    reading = reading_of(loader)
    if reading is not None:  # its own order and drop_last do not matter here
        chunks = [rows.tolist() for rows in covered(loader, "loader").split(reading.batch_size)]
        yield from (inputs for inputs, _ in read_chunks(reading, chunks, 0, reader))
        return
    if not isinstance(loader, Iterable):
        raise DataError(
            f"loader: expected an iterable of batches, found {type(loader).__name__}; pass a "
            "DataLoader or a list of (images, labels) batches"
        )
    yield from (reader.read(raw)[0] for raw in loader)


def _warn_of_augmentation(loader: Loader) -> None:
    """Read some samples twice: what is not the same again cannot be taken out again."""
    reading = reading_of(loader)
    if reading is None:  # a stream is read once
        return
    looked_at = covered(loader, "loader")[:LOOKED_AT].split(reading.batch_size)
    chunks = [rows.tolist() for rows in looked_at]
    first, again = (
        read_chunks(reading, chunks, seed, Reader("loader", needs_labels=False)) for seed in (0, 1)
    )
    if not all(same(one[0], other[0]) for one, other in zip(first, again, strict=True)):
        logger.warning(
            "statistics: the loader gives a different image each time a sample is read (random "
            "augmentation), so the moments of images to forget will not be part of these; collect "
            "them with a deterministic transform"
        )


def count_of(loader: Loader) -> int | None:
    """Return how many samples a loader draws from, or ``None`` for a stream."""
    if reading_of(loader) is not None:
        return len(covered(loader, "loader"))
    if isinstance(loader, Sequence):
        reader = Reader("loader", needs_labels=False)
        return sum(batch_size(reader.read(raw)[0]) for raw in loader)
    return None


def check_options(positions: object, max_dim: object, products: object) -> None:
    """Refuse options that mean nothing.

    Raises:
        BadHyperparameter: a value is out of range.
    """
    number = isinstance(positions, (int, float)) and not isinstance(positions, bool)
    if positions not in ("auto", "all") and not (number and float(str(positions)) > 0):
        raise BadHyperparameter(
            f"collect(positions={positions!r}): expected 'auto', 'all' or a positive number of "
            f"rows an image, found {positions!r}; leave it out for 'auto'"
        )
    if not isinstance(max_dim, int) or isinstance(max_dim, bool) or max_dim < 1:
        raise BadHyperparameter(
            f"collect(max_dim={max_dim!r}): expected a positive integer, found {max_dim!r}; leave "
            f"it out for {WIDEST}"
        )
    if products not in ("double", "single"):
        raise BadHyperparameter(
            f"collect(products={products!r}): expected 'double' or 'single', found {products!r}; "
            "leave it out for 'double'"
        )


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


def plain_forward(model: nn.Module) -> Forward:
    """Return calls of a model where its weights are and in their type, without autocast."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = torch.device("cpu") if first is None else first.device
    dtype = None if first is None else first.dtype

    def call(inputs: Inputs) -> object:
        placed = moved_inputs(inputs, device, dtype)
        return model(placed) if isinstance(placed, Tensor) else model(**placed)

    return call


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
