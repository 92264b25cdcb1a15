"""Which slices of which parameters make a class's logit, read off the gradients of the head.

A slice belongs to class ``c`` when it moves logit ``c`` on some of many random features and no
other logit on any of them. Dense answers (gates, scales, spectral norm) belong to no class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forgetkit.dryrun.packing import Packing
from forgetkit.dryrun.program import Program
from forgetkit.dryrun.refusals import refusal
from forgetkit.view import RowRef

_FEATURES = 32  # a ReLU or a maximum hides losing rows from few features
_SEED = 20_240_517


def random_features(program: Program, packing: Packing, count: int) -> list[Tensor]:
    """Draw float features for every cut, on the device where the head is now."""
    generator = torch.Generator().manual_seed(_SEED)
    weight = next(iter(program.weights().values()), None)  # a run may have moved the recorded head
    device = program.device if weight is None else weight.device
    dtype = torch.float64 if program.dtype == torch.float64 else torch.float32
    return [
        torch.randn(count, *shape, generator=generator).to(device, dtype)
        for shape in packing.shapes
    ]


def find_rows(program: Program, packing: Packing, label: int) -> list[RowRef]:
    """Return the slices that make logit ``label`` and no other.

    Args:
        program: the head.
        packing: the shapes of its features.
        label: class index.

    Returns:
        One entry a parameter or buffer that has a slice of the class's own.

    Raises:
        CannotSplitModel: ``read-only`` when weights are packed, sharded or not loaded.
    """
    weights = _editable(program)
    leaves = {path: weight.detach().clone().requires_grad_() for path, weight in weights.items()}
    swap = {id(weight): leaves[path] for path, weight in weights.items()}
    with torch.enable_grad():
        logits = program.run(random_features(program, packing, _FEATURES), swap)
        generator = torch.Generator().manual_seed(_SEED)
        mixture = torch.rand(logits.shape, generator=generator).to(logits) + 0.5
        own = torch.zeros_like(mixture)
        own[:, label] = mixture[:, label]
        tensors = list(leaves.values())
        mine = _gradients((logits * own).sum(), tensors)
        theirs = _gradients((logits * (mixture - own)).sum(), tensors)
    refs = []
    for path, grad, others in zip(leaves, mine, theirs, strict=True):
        ref = _own_slice(path, weights[path], grad, others)
        if ref is not None:
            refs.append(ref)
    _refresh(program, packing)
    return refs


def _editable(program: Program) -> dict[str, Tensor]:
    weights = {
        path: weight for path, weight in program.weights().items() if weight.is_floating_point()
    }
    blocked = [
        path
        for path, weight in weights.items()
        if weight.is_meta or type(weight).__module__.startswith("torch.distributed")
    ]
    if weights and not blocked:
        return weights
    held = ", ".join(blocked) or "no floating-point tensor at all"
    raise refusal(
        "read-only",
        f"the head's weights should be in memory as ordinary tensors to edit a class, found "
        f"{held}: they are offloaded, sharded or quantised. Load the weights (remove the offload, "
        "unshard, dequantise) before editing.",
    )


def _gradients(score: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    if not score.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    grads = torch.autograd.grad(score, tensors, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(tensor) if grad is None else grad
        for grad, tensor in zip(grads, tensors, strict=True)
    ]


def _own_slice(path: str, weight: Tensor, mine: Tensor, others: Tensor) -> RowRef | None:
    best: tuple[int, ...] = ()
    chosen = -1
    for axis in range(weight.dim()):
        index = _touched(mine, axis)
        if not index or set(index) & set(_touched(others, axis)):
            continue
        if chosen < 0 or len(index) < len(best):
            best, chosen = index, axis
    return None if chosen < 0 else RowRef(path, weight, chosen, best)


def _touched(grad: Tensor, axis: int) -> tuple[int, ...]:
    hit = (grad != 0).movedim(axis, 0).flatten(1).any(1) if grad.dim() > 1 else grad != 0
    return tuple(hit.nonzero().flatten().tolist())


def _refresh(program: Program, packing: Packing) -> None:
    # Old-style weight norm leaves the derived weight of the last call on the module.
    with torch.no_grad():
        program.run(random_features(program, packing, 1))
