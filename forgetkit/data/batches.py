"""What one batch of a user's loader says: its inputs and its labels, whatever its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from forgetkit.errors import DataError
from forgetkit.listed import shortened
from forgetkit.moving import sent
from forgetkit.types import Inputs

IMAGE_KEYS = ("pixel_values", "image", "img", "images", "x", "input", "inputs")
LABEL_KEYS = ("labels", "label", "y", "target", "targets", "fine_label")
_KEYWORD_INPUTS = "pixel_values"  # transformers: what stands beside it is passed by keyword
_CONVERT = "convert the batches, in the collate_fn if it is a DataLoader"
_FORMS = (
    "(images, labels), a mapping such as {'pixel_values': images, 'labels': labels} or an object "
    "with such attributes"
)


class NoLabels(DataError):
    """A batch holds images without labels."""


class Reader:
    """Reads the batches of one pass over one loader, and checks that they agree in form.

    Args:
        name: how the loader is called in messages, for instance ``"loader"``.
        needs_labels: whether a batch without labels is refused.
    """

    def __init__(self, name: str, *, needs_labels: bool = True) -> None:
        self.name = name
        self.needs_labels = needs_labels
        self.count = -1
        self._form: str | None = None

    @property
    def where(self) -> str:
        """The batch that was read last, for messages."""
        return f"{self.name}, batch {self.count} (counted from 0)"

    def read(self, raw: object) -> tuple[Inputs, object]:
        """Return inputs, checked, and labels, as they came.

        Where labels are not needed they are not looked at, and ``None`` when there are none.

        Raises:
            DataError: the batch has no known form or another form than the ones before it,
                labels are missing (``NoLabels``), the inputs are not tensors or not finite, or
                their number is not that of the labels.
        """
        self.count += 1
        inputs, labels, form = self._taken_apart(raw)
        if self._form is None:
            self._form = form
        elif form != self._form:
            raise DataError(
                f"{self.where}: expected every batch in one form, found {form} after {self._form}; "
                "make the loader return one kind of batch"
            )
        self._check_inputs(inputs)
        if self.needs_labels:
            self._check_labels(labels, inputs)
        return inputs, labels

    def _check_labels(self, labels: object, inputs: Inputs) -> None:
        if labels is None:
            raise NoLabels(
                f"{self.where}: expected labels beside the images, found none; "
                "return labels with every sample"
            )
        size = _size(labels)
        if size is None or size != batch_size(inputs):
            found = "one label" if size is None else f"{size} labels"
            raise DataError(
                f"{self.where}: expected one label for each image, found {found} for "
                f"{batch_size(inputs)} images; a loader yields batches: pass a DataLoader or add "
                "the batch axis, and make its collate_fn keep images and labels together"
            )

    def _taken_apart(self, raw: object) -> tuple[Inputs, object, str]:
        """Return inputs, labels (``None`` when there are none) and the name of the form."""
        fields = _fields(raw)
        if fields is None:
            return self._pair(raw)
        image_key = next((key for key in IMAGE_KEYS if key in fields), None)
        if image_key is None:
            raise DataError(
                f"{self.where}: expected the images under one of {', '.join(IMAGE_KEYS)}, found "
                f"{', '.join(map(str, fields)) or 'nothing'}; rename the entry, for instance in "
                "the collate_fn"
            )
        label_key = next((key for key in LABEL_KEYS if key in fields), None)
        labels = None if label_key is None else fields[label_key]
        form = f"a mapping with {image_key} and {label_key}"
        image = fields[image_key]
        extra = {
            name: value
            for name, value in fields.items()
            if isinstance(value, Tensor) and name not in (*LABEL_KEYS, image_key)
        }
        if image_key != _KEYWORD_INPUTS or not extra:
            return self._tensor(image), labels, form
        return {image_key: self._tensor(image), **extra}, labels, form

    def _pair(self, raw: object) -> tuple[Inputs, object, str]:
        if not self.needs_labels and isinstance(raw, Tensor):
            return raw, None, "images without labels"
        if not self.needs_labels and isinstance(raw, (tuple, list)) and len(raw) == 1:
            return self._tensor(raw[0]), None, "images without labels"
        if isinstance(raw, Tensor):
            raise NoLabels(
                f"{self.where}: expected images and labels, found one tensor of shape "
                f"{tuple(raw.shape)} without labels; yield {_FORMS}"
            )
        if not isinstance(raw, (tuple, list)) or len(raw) != 2:
            number = f" of {len(raw)} entries" if isinstance(raw, (tuple, list)) else ""
            alone = isinstance(raw, (tuple, list)) and len(raw) == 1
            raise DataError(
                f"{self.where}: expected {_FORMS}, found {type(raw).__name__}{number}; "
                + ("add the labels to the data set" if alone else _CONVERT)
            )
        inputs, labels = raw
        if isinstance(inputs, Mapping):
            named = {str(name): self._tensor(value) for name, value in inputs.items()}
            return named, labels, "a pair of named tensors and labels"
        return self._tensor(inputs), labels, "a pair of images and labels"

    def _tensor(self, image: object) -> Tensor:
        if isinstance(image, Tensor):
            return image
        sample = image[0] if isinstance(image, Sequence) and len(image) else image
        raise DataError(
            f"{self.where}: expected the images as one tensor (batch, channels, height, width), "
            f"found {type(image).__name__}"
            + ("" if sample is image else f" of {type(sample).__name__}")
            + f"; {_advice(sample)}"
        )

    def _check_inputs(self, inputs: Inputs) -> None:
        named = {"images": inputs} if isinstance(inputs, Tensor) else inputs
        sizes = {name: len(value) if value.ndim else None for name, value in named.items()}
        if len(set(sizes.values())) != 1 or None in sizes.values():
            raise DataError(
                f"{self.where}: expected every input to have the samples on its first axis, found "
                f"the sizes {sizes}; leave other tensors out of the batch"
            )
        for name, value in named.items():
            if is_finite(value):
                continue
            bad = ""
            if value.ndim > 1:
                rows = torch.nonzero(~torch.isfinite(value).flatten(1).all(dim=1)).flatten()
                bad = f" in its rows {shortened(rows.tolist())}"
            raise DataError(
                f"{self.where}: expected finite numbers in {name}, found NaN or infinity{bad}; "
                "repair or remove these samples"
            )


def is_finite(values: Tensor) -> bool:
    """Return whether no entry is NaN or infinite, reading the memory once when all is well."""
    if not values.is_floating_point():
        return True
    total = values.sum(dtype=torch.float32 if values.element_size() < 4 else None)
    # a sum may overflow although every term is finite
    return bool(torch.isfinite(total)) or bool(torch.isfinite(values).all())


def batch_size(inputs: Inputs) -> int:
    """Return the number of samples in a batch of inputs."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


def rows_of(inputs: Inputs, rows: Tensor | slice) -> Inputs:
    """Return some samples of a batch of inputs."""

    def of(value: Tensor) -> Tensor:
        return value[sent(rows, value.device) if isinstance(rows, Tensor) else rows]

    if isinstance(inputs, Tensor):
        return of(inputs)
    return {name: of(value) for name, value in inputs.items()}


def is_batch(given: object) -> bool:
    """Return whether something is one batch of images and labels, and so no iterable of batches.

    A list of two batches without labels is none: the second one is no batch of labels.
    """
    fields = _fields(given) if isinstance(given, (Mapping, tuple)) else None
    if fields is not None:
        images, labels = (
            next((fields[key] for key in keys if key in fields), None)
            for keys in (IMAGE_KEYS, LABEL_KEYS)
        )
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        images, labels = given
    else:
        return False
    if not isinstance(images, (Tensor, np.ndarray)) or not isinstance(labels, (Tensor, np.ndarray)):
        return False
    return 0 < labels.ndim < images.ndim and len(images) == len(labels)


def is_picture(value: object) -> bool:
    """Return whether a value is an image object of PIL, without importing PIL."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _advice(sample: object) -> str:
    if is_picture(sample):
        return "add torchvision.transforms.ToTensor() (or the model's image processor) to the data"
    if isinstance(sample, Tensor):
        return "stack them, for instance with torch.utils.data.default_collate"
    return "convert them with torch.as_tensor, in the collate_fn if it is a DataLoader"


def _fields(raw: object) -> Mapping[str, object] | None:
    """Return the entries of a mapping, a named tuple or a namespace by name."""
    if isinstance(raw, Mapping):
        return raw
    named = getattr(raw, "_asdict", None)
    if callable(named):
        fields: Mapping[str, object] = named()
        known = any(key in fields for key in IMAGE_KEYS)
        return fields if known or len(fields) != 2 else None
    if isinstance(raw, (Tensor, tuple, list, str, bytes)) or raw is None:
        return None
    found = {key: getattr(raw, key) for key in (*IMAGE_KEYS, *LABEL_KEYS) if hasattr(raw, key)}
    if not found:
        return None
    # the rest of a namespace's tensors goes along as the rest of a mapping's does
    return {**getattr(raw, "__dict__", {}), **found}


def _size(labels: object) -> int | None:
    if isinstance(labels, Tensor):
        return len(labels) if labels.ndim else None
    if isinstance(labels, (str, bytes)) or not hasattr(labels, "__len__"):
        return None
    return len(labels)
