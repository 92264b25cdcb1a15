"""What part of an image speaks for the forgotten class, before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetkit.adapting import logits_of
from forgetkit.auditing.evidence import Evidence, Missing, Subject
from forgetkit.auditing.stages import channels_last
from forgetkit.engine.modes import evaluating
from forgetkit.engine.place import moved_inputs
from forgetkit.report.drawing import Picture, sheet, style
from forgetkit.report.record import Record
from forgetkit.types import Batch, Inputs
from forgetkit.view import ModelView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
PREFIXES = (0, 1, 2, 5, 4, 3, 6, 7, 8)
"""How many class and register tokens may stand before the patches, the likely numbers first."""
TOP = 0.2


@dataclass(frozen=True)
class _Layer:
    """A layer's output as a grid: what belongs to no position is cut off.

    Args:
        output: (samples, ...).
        prefix: tokens before the patches.
        side: patches a row; 0 for feature maps.
        channels_last: whether maps are (height, width, channels).
    """

    output: Tensor
    prefix: int = 0
    side: int = 0
    channels_last: bool = False

    def grid(self, tensor: Tensor) -> Tensor:
        """Return (samples, channels, height, width) of the output or of its gradient."""
        if self.side:
            tokens = tensor[:, self.prefix :].transpose(1, 2)
            return tokens.reshape(*tokens.shape[:2], self.side, self.side)
        return tensor.permute(0, 3, 1, 2) if self.channels_last else tensor


def relevance_maps(
    model: nn.Module, inputs: Inputs, labels: Tensor, answer: Callable[[Inputs], Tensor]
) -> Tensor:
    """Return maps in [0, inf), (samples, height, width) of the image: Grad-CAM.

    The gradient of the class's logit by the last layer that still has positions is averaged over
    positions and weighs that layer's channels; what is below 0 is cut. For tokens, gradient times
    token, summed over channels, takes the place of the average. The model, its gradients and its
    flags are left as they were.

    Args:
        model: whose layers are watched.
        inputs: images.
        labels: (samples,) classes whose logits are explained.
        answer: returns logits (samples, classes) by one forward of ``model``.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017.

    Raises:
        Missing: no layer has positions.
    """
    images = pixels(inputs)
    layers: list[_Layer] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        output = output[0] if isinstance(output, tuple) and output else output
        layer = _layer(output, len(images)) if isinstance(output, Tensor) else None
        if layer is not None:
            layers.append(layer)

    leaf = images.detach().clone().requires_grad_(True)
    hooks = [m.register_forward_hook(keep) for m in model.modules() if m is not model]
    try:
        with evaluating(model), torch.enable_grad():
            asked = leaf if isinstance(inputs, Tensor) else _with_pixels(inputs, leaf)
            wanted = answer(asked).gather(1, labels[:, None]).sum()
    finally:
        for hook in hooks:
            hook.remove()
    tracked = [layer for layer in layers if layer.output.requires_grad]
    if not tracked:
        raise Missing("needs a layer with positions (feature maps or tokens), and there is none")
    if not wanted.requires_grad:
        return torch.zeros(len(images), *images.shape[-2:])
    found = torch.autograd.grad(wanted, [one.output for one in tracked], allow_unused=True)
    # The last block's output tokens do not reach a head that reads the class token alone: the last
    # layer whose positions still matter is the one to show.
    used = [
        (layer, gradient)
        for layer, gradient in zip(tracked, found, strict=True)
        if gradient is not None and bool(layer.grid(gradient).any())
    ]
    if not used:
        return torch.zeros(len(images), *images.shape[-2:])
    layer, slope = used[-1]
    grid, gradient = layer.grid(layer.output.detach()), layer.grid(slope)
    weights = gradient if layer.side else gradient.mean(dim=(2, 3), keepdim=True)
    heat = (weights * grid).sum(dim=1, keepdim=True).clamp(min=0).float()
    size = images.shape[-2:]
    return functional.interpolate(heat, size, mode="bilinear", align_corners=False)[:, 0].cpu()


def overlap(left: Tensor, right: Tensor, share: float = TOP) -> float:
    """Return the intersection over union of the strongest pixels of two maps."""
    count = max(1, round(share * left.numel()))
    first, second = (
        set(heat.flatten().topk(count).indices.tolist()) if bool(heat.any()) else set()
        for heat in (left, right)
    )
    return len(first & second) / len(first | second) if first | second else 0.0


def correlation(left: Tensor, right: Tensor) -> float | None:
    """Return Pearson's correlation of two maps, or ``None`` when one of them is flat."""
    a, b = (heat.flatten().double() - heat.double().mean() for heat in (left, right))
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else None


def relevance_figure(
    images: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor],
    titles: Sequence[str],
) -> Figure:  # fmt: skip
    """Draw each image, and the maps before and after over it on one colour scale a sample.

    Args:
        images: (channels, height, width) each.
        before: (height, width) each.
        after: (height, width) each.
        titles: one a sample.
    """
    with style():
        figure, panels = sheet(len(images), 3, height=0.35 + 1.62 * len(images))
        for row, (image, *maps) in enumerate(zip(images, before, after, strict=True)):
            cells = panels[3 * row : 3 * row + 3]
            top = max(float(heat.max()) for heat in maps) or 1.0
            for axes, heat in zip(cells, (None, *maps), strict=True):
                shown = _shown(image)
                axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
                if heat is not None:
                    axes.imshow(heat.numpy() / top, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
                axes.set_axis_off()
            cells[0].set_title(titles[row], fontsize=8.5)
        for axes, words in zip(panels[1:3], ("before", "after"), strict=True):
            axes.set_title(words, fontsize=8.5)
    return figure


def picture(record: Record, evidence: Evidence | None) -> Picture:
    """Draw a few forget samples with what speaks for their class before and after.

    Raises:
        Missing: a model or the forget samples are not at hand, or no layer has positions.
    """
    del record
    if evidence is None:
        raise Missing("needs the models and images, which are at hand only during an audit")
    batch = a_few(evidence)
    before, after = evidence.subject("original"), evidence.subject("unlearned")
    labels = batch.labels.to(evidence.device)
    maps = []
    for subject in (before, after):
        view = subject.view
        # A masked row has no gradient: the map would be blank by construction.
        head = before.view if evidence.head_masked else None

        def answer(
            asked: Inputs, model: nn.Module = subject.model, view: object = view,
            head: object = head,
        ) -> Tensor:  # fmt: skip
            if isinstance(view, ModelView) and isinstance(head, ModelView):
                return head.head(view.features(asked))
            return logits_of(model(asked) if isinstance(asked, Tensor) else model(**asked))

        inputs = placed(batch.inputs, subject, evidence)
        maps.append(relevance_maps(subject.model, inputs, labels, answer))
    borrowed = " The head before reads the features after." if evidence.head_masked else ""
    return compared(
        "relevance", "What speaks for the forgotten class", "Grad-CAM of the true class", batch,
        (maps[0], maps[1]), f"1 means that the model still looks at the same place.{borrowed}",
    )  # fmt: skip


def a_few(evidence: Evidence) -> Batch:
    """Return the forget samples that pictures show.

    Raises:
        Missing: there are none with one class each.
    """
    samples = evidence.samples("forget")
    if len(samples) == 0 or samples.labels.ndim != 1:
        raise Missing("needs forget samples with one class each")
    generator = torch.Generator().manual_seed(evidence.seed)
    rows = torch.randperm(len(samples), generator=generator)[:SHOWN].sort().values
    return next(iter(samples.take(rows).batches(SHOWN)))


def placed(inputs: Inputs, subject: Subject, evidence: Evidence) -> Inputs:
    """Return inputs on the device of the audit, in the type that the model computes in."""
    parameter = next((p for p in subject.model.parameters() if p.is_floating_point()), None)
    return moved_inputs(inputs, evidence.device, None if parameter is None else parameter.dtype)


def compared(
    slug: str, title: str, what: str, batch: Batch, maps: tuple[Tensor, Tensor], reading: str
) -> Picture:
    """Return the picture of maps before and after, with their overlap and correlation in numbers.

    Args:
        slug: file name.
        title: what it shows.
        what: the kind of map.
        batch: the samples.
        maps: before and after, (samples, height, width) each.
        reading: how to read the overlap.
    """
    first, second = maps
    numbers = [
        (int(batch.index[i]), int(batch.labels[i]), overlap(first[i], second[i]),
         correlation(first[i], second[i])) for i in range(len(batch))
    ]  # fmt: skip
    mean = sum(row[2] for row in numbers) / len(numbers)
    known = [row[3] for row in numbers if row[3] is not None]
    told = f"The strongest {TOP:.0%} of the pixels overlap by {mean:.2f} (IoU)"
    told += f", correlation {sum(known) / len(known):.2f}" if known else ""
    return Picture(
        slug, title,
        f"{what} on {len(numbers)} forget samples, one colour scale a sample. {told}; {reading}",
        f"Images with maps before and after. {told}",
        relevance_figure(
            list(pixels(batch.inputs).float()), list(first), list(second),
            [f"sample {row[0]}" for row in numbers],
        ),
        ("sample", "label", "iou", "correlation"),
        [(*row[:3], "" if row[3] is None else row[3]) for row in numbers],
    )  # fmt: skip


def _layer(output: Tensor, count: int) -> _Layer | None:
    """Return a layer's output as a grid when it has positions."""
    if len(output) != count or not output.is_floating_point():
        return None
    if output.ndim == 4:
        layer = _Layer(output, channels_last=channels_last(output))
        return layer if min(layer.grid(output).shape[-2:]) > 1 else None
    if output.ndim != 3:
        return None
    square = patch_grid(output.shape[1])
    return None if square is None else _Layer(output, *square)


def patch_grid(tokens: int) -> tuple[int, int] | None:
    """Return how many tokens stand before the patches, and how many patches make a row."""
    for prefix in PREFIXES:
        side = math.isqrt(max(tokens - prefix, 0))
        if side > 1 and side * side == tokens - prefix:
            return prefix, side
    return None


def pixels(inputs: Inputs) -> Tensor:
    """Return the images among the inputs.

    Raises:
        Missing: there are none.
    """
    if isinstance(inputs, Tensor):
        return inputs
    images = inputs.get("pixel_values")
    if not isinstance(images, Tensor):
        raise Missing("needs images, and the inputs hold none under 'pixel_values'")
    return images


def _with_pixels(inputs: Inputs, images: Tensor) -> Inputs:
    return images if isinstance(inputs, Tensor) else {**inputs, "pixel_values": images}


def _shown(image: Tensor) -> Tensor:
    """Return (height, width) or (height, width, 3) between 0 and 1."""
    low, high = float(image.min()), float(image.max())
    scaled = (image - low) / (high - low if high > low else 1.0)
    return scaled.permute(1, 2, 0) if len(scaled) == 3 else scaled[0]
