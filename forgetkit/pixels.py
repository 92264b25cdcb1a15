"""What attacks on images need to know about inputs: their range, and where the pixels are.

Pure functions. Attacks work in *unit space*, where the range of every channel is [0, 1], so that a
radius means the same for images in [0, 1], in [0, 255] and for normalised ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from forgetkit.errors import DataError
from forgetkit.moving import sent
from forgetkit.types import Inputs, PixelBounds

LogitsFunction = Callable[[Tensor], Tensor]

_SLACK = 0.01  # of the range: bounds that are rounded to two digits hold their images


@dataclass(frozen=True)
class PixelRange:
    """The valid range of inputs.

    Args:
        low: smallest value, broadcastable to inputs (batch, ...): one for each channel, or one.
        high: largest value, in the same shape.
        source: where it comes from, in words.
    """

    low: Tensor
    high: Tensor
    source: str

    def to_unit(self, inputs: Tensor) -> Tensor:
        """Return inputs in unit space; a channel without any width becomes 0."""
        low, width = self._on(inputs)
        return (inputs - low) / torch.where(width > 0, width, torch.ones_like(width))

    def from_unit(self, unit: Tensor) -> Tensor:
        """Return inputs from unit space, (batch, ...), clamped to the range.

        Gradients pass the clamp unchanged: a pixel at an end of the range may move inwards, but the
        slope of the clamp is halved there, and 0 where rounding puts the end just outside.
        """
        low, width = self._on(unit)
        moved = low + unit * width
        fixed = moved.detach()
        held = torch.minimum(torch.maximum(fixed, low), sent(self.high, unit.device))
        return held + (moved - fixed)  # the values of held exactly, with the slope of moved

    def describe(self) -> str:
        """Say in words what the range is."""
        pairs = zip(self.low.flatten().tolist(), self.high.flatten().tolist(), strict=True)
        shown = [f"[{low:.4g}, {high:.4g}]" for low, high in pairs]
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        return f"{', '.join(shown[:4])}{more} ({self.source})"

    def _on(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        low, high = sent(self.low, inputs.device), sent(self.high, inputs.device)
        return low, high - low


def pixel_range(
    bounds: PixelBounds | None,
    images: Iterable[Tensor],
    log: Callable[[str], None] | None = None,
) -> PixelRange:
    """Return the range that attacks keep to.

    Args:
        bounds: a range for all channels, or for each, in the units of the inputs; ``None`` takes
            the smallest and largest value of each channel in ``images``.
        images: batches (batch, channels, ...); inputs of fewer than three dimensions have no
            channels and share one range. Without ``log`` they are not read when ``bounds`` is one
            range for all.
        log: is told when images lie outside ``bounds``.

    Raises:
        DataError: there is no image to read, or ``bounds`` has another number of channels.
    """
    if bounds is not None:
        low, high = (torch.tensor(end, dtype=torch.float32) for end in bounds)
        left = iter(images)
        if low.ndim > 0:
            example = next(left, None)
            low, high = _by_channel(low, example), _by_channel(high, example)
            left = chain([] if example is None else [example], left)
        given = PixelRange(low, high, "as given by bounds")
        if log is not None:
            _tell_what_is_cut(given, left, log)
        return given
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    for batch in images:
        if len(batch) == 0:
            continue
        held = [0, *range(2, batch.ndim)] if batch.ndim > 2 else list(range(batch.ndim))
        lows.append(batch.detach().float().amin(dim=held, keepdim=batch.ndim > 2).cpu())
        highs.append(batch.detach().float().amax(dim=held, keepdim=batch.ndim > 2).cpu())
    if not lows:
        raise DataError(
            "attack: expected images to take the range of pixels from, found none; pass bounds="
        )
    return PixelRange(
        torch.stack(lows).amin(dim=0),
        torch.stack(highs).amax(dim=0),
        "smallest and largest value seen in the forget set; pass bounds= to change it",
    )


def _tell_what_is_cut(
    given: PixelRange, images: Iterable[Tensor], log: Callable[[str], None]
) -> None:
    """Say how many pixels lie outside the range: attacks begin with cut images then."""
    cut = total = 0
    least, most = torch.inf, -torch.inf
    for batch in images:
        if len(batch) == 0:
            continue
        unit = given.to_unit(batch.detach().float())
        cut += int(((unit < -_SLACK) | (unit > 1 + _SLACK)).sum())
        total += unit.numel()
        least, most = min(least, float(batch.min())), max(most, float(batch.max()))
    if cut:
        log(
            f"bounds: {100 * cut / total:.2g} % of the values of the images, which run from "
            f"{least:.4g} to {most:.4g}, lie outside {given.describe()} and are cut to it; give "
            "bounds in the units of the model's inputs (after normalisation these are (0 - mean) / "
            "std and (1 - mean) / std of each channel), or None to take them from the images"
        )


def _by_channel(ends: Tensor, example: Tensor | None) -> Tensor:
    """Return one number a channel in the shape of a batch of images."""
    if example is None or example.ndim < 3 or example.shape[1] != len(ends):
        found = "no image" if example is None else f"inputs of shape {tuple(example.shape)}"
        raise DataError(
            f"bounds: expected one number for each channel of images (batch, channels, ...), found "
            f"{len(ends)} for {found}; give as many as there are channels, or one (low, high)"
        )
    return ends.view(1, -1, *[1] * (example.ndim - 2))


def pixels_of(inputs: Inputs) -> tuple[str | None, Tensor]:
    """Return the float tensor that an attack may change, and its name if the inputs are named.

    Raises:
        DataError: the inputs hold no or several float tensors.
    """
    named: dict[str | None, Tensor] = {None: inputs} if isinstance(inputs, Tensor) else {}
    if not isinstance(inputs, Tensor):
        named.update(inputs.items())
    floats = {name: value for name, value in named.items() if value.is_floating_point()}
    if len(floats) == 1:
        return next(iter(floats.items()))
    found = ", ".join(f"{name or 'inputs'} of {value.dtype}" for name, value in named.items())
    raise DataError(
        f"attack: expected exactly one floating-point tensor among the inputs, found {found}; give "
        "the model images as floats, or use a method that does not attack images"
    )


def with_pixels(inputs: Inputs, pixels: Tensor, rows: Tensor) -> Inputs:
    """Return the given rows of inputs with other pixels.

    Args:
        inputs: the inputs of a batch.
        pixels: (rows, ...) what replaces the float tensor.
        rows: (rows,) int64; row i of the result is row ``rows[i]`` of ``inputs``.
    """
    if isinstance(inputs, Tensor):
        return pixels
    own, _ = pixels_of(inputs)
    return {
        name: pixels if name == own else value[sent(rows, value.device)]
        for name, value in inputs.items()
    }


def gathered(parts: Iterable[Inputs]) -> Inputs:
    """Return the inputs of several batches as one, on the host."""
    listed = list(parts)
    first = listed[0]
    if isinstance(first, Tensor):
        return torch.cat([part.cpu() for part in listed if isinstance(part, Tensor)])
    named = [part for part in listed if isinstance(part, Mapping)]
    return {name: torch.cat([part[name].cpu() for part in named]) for name in first}


_STATE = "attacked inputs"


def packed(inputs: Inputs) -> dict[str, Tensor]:
    """Return inputs as entries of ``run.state``."""
    if isinstance(inputs, Tensor):
        return {_STATE: inputs}
    return {f"{_STATE}.{name}": value for name, value in inputs.items()}


def unpacked(state: Mapping[str, Tensor]) -> Inputs:
    """Return the inputs that ``packed`` put into ``run.state``."""
    if _STATE in state:
        return state[_STATE]
    start = f"{_STATE}."
    return {name.removeprefix(start): v for name, v in state.items() if name.startswith(start)}


def saved_bytes(logits_of: LogitsFunction, pixels: Tensor) -> int:
    """Return the bytes that one pass keeps for its backward pass."""
    sizes: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(seen, lambda tensor: tensor):
        kept = logits_of(pixels.detach().clone().requires_grad_())
    del kept
    return sum(sizes.values())


def rows_at_once(logits_of: LogitsFunction, pixels: Tensor, budget: int) -> int:
    """Return how many rows fit into a budget of bytes, at least one.

    What does not grow with the batch (weights) cancels between a pass over one and over two rows.

    Args:
        logits_of: the attacked function.
        pixels: (1, ...) an example.
        budget: bytes for what a pass keeps.
    """
    one = saved_bytes(logits_of, pixels)
    two = saved_bytes(logits_of, torch.cat([pixels, pixels]))
    each = max(two - one, 4 * pixels.nbytes)
    return int(max(1, min(budget // each, 1 << 14)))
