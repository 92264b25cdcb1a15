"""Pooled outputs of the blocks of a network, by forward hooks that are removed again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from forgetkit.adapting import unwrap
from forgetkit.engine.modes import evaluating
from forgetkit.engine.place import moved_inputs
from forgetkit.layers import layers
from forgetkit.types import SampleSet


def pooled(output: object) -> Tensor | None:
    """Return (batch, channels) of a block's output, or ``None`` when it has no such shape.

    Maps (batch, channels, height, width), or with channels last, are averaged over positions,
    tokens (batch, tokens, dim) over tokens; of a tuple the first tensor counts.
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        return None
    if output.ndim == 2:
        return output
    if output.ndim == 3:
        return output.mean(dim=1)
    return output.mean(dim=(1, 2) if channels_last(output) else (2, 3))


def channels_last(maps: Tensor) -> bool:
    """Return whether maps (batch, ...) have their channels last, as windowed transformers do.

    Nothing but the shape tells: two equal sizes before another one are height and width. Maps that
    are not square are taken to have their channels first.
    """
    return maps.shape[1] == maps.shape[2] != maps.shape[3]


@torch.no_grad()
def stage_features(model: nn.Module, samples: SampleSet, device: torch.device) -> dict[str, Tensor]:
    """Return the pooled output of every block in forward order, (samples, channels) float32.

    Args:
        model: left as it was.
        samples: read once, in order.
        device: where the model is.

    Raises:
        ModelError: the model calls no layer with weights.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def call(inputs: object) -> None:
        if isinstance(inputs, Tensor):
            model(inputs)
        elif isinstance(inputs, dict):
            model(**inputs)

    few = next(iter(samples.take(torch.arange(min(2, len(samples)))).batches(2)))
    with evaluating(model):
        bare = unwrap(model)
        first = moved_inputs(few.inputs, device, dtype)
        found: dict[str, list[Tensor]] = {
            layer.name: [] for layer in layers(bare, lambda: call(first), "block")
        }
        handles: list[RemovableHandle] = []
        try:
            for name, parts in found.items():
                keeper = _keeper(parts)
                handles.append(bare.get_submodule(name).register_forward_hook(keeper))
            for batch in samples.batches():
                call(moved_inputs(batch.inputs, device, dtype))
        finally:
            for handle in handles:
                handle.remove()
    whole = {name: torch.cat(parts) for name, parts in found.items() if parts}
    return {name: each for name, each in whole.items() if len(each) == len(samples)}


def _keeper(parts: list[Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        found = pooled(output)
        if found is not None:
            parts.append(found.float().cpu())

    return keep
