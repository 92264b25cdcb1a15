"""Whether logits are affine in the features, and whether classes are independent in the head."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetkit.dryrun.atoms import is_overridden
from forgetkit.dryrun.graph import Node
from forgetkit.dryrun.packing import Packing
from forgetkit.dryrun.program import Program
from forgetkit.dryrun.rows import random_features

_SHAPE_ONLY = frozenset(
    {"flatten", "view", "reshape", "squeeze", "unsqueeze", "Flatten", "Identity", "contiguous"}
)
_PROBES = 16


def probe(program: Program, packing: Packing) -> tuple[bool, bool]:
    """Return (separable, linear) of a head.

    Both are read off the calls when those are a single Linear or convolution and reshapes, and
    measured on random features otherwise.
    """
    if _is_plain(program):
        return True, True
    if program.device.type == "meta":
        return not any("softmax" in node.label() for node in program.slice.tail()), False
    try:
        return _separable(program, packing), _linear(program, packing)
    except (RuntimeError, NotImplementedError, TypeError):
        # Quantised kernels take no float features and have no gradient: nothing can be promised.
        return False, False


def _is_plain(program: Program) -> bool:
    found = program.slice
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)  # noqa: SLF001 - its public base
    nodes = [found.graph.nodes[number] for number in found.affines]
    own = len(nodes) == 1 and isinstance(nodes[0].module, kinds)
    own = own and nodes[0].module is not None and not is_overridden(nodes[0].module)
    return own and not found.folded and all(_keeps_values(node) for node in found.tail())


def _keeps_values(node: Node) -> bool:
    name = node.name if node.module is None else type(node.module).__name__
    return name in _SHAPE_ONLY


def _linear(program: Program, packing: Packing) -> bool:
    left = [cut * 4 for cut in random_features(program, packing, _PROBES)]
    right = [cut.flip(0) for cut in left]
    with torch.no_grad():
        middle = program.run([0.25 * a + 0.75 * b for a, b in zip(left, right, strict=True)])
        mixed = 0.25 * program.run(left) + 0.75 * program.run(right)
    scale = max(float(mixed.abs().max()), float(middle.abs().max()))
    gap = float((middle - mixed).abs().max())
    return gap <= 1e-4 * scale


def _separable(program: Program, packing: Packing) -> bool:
    watched: dict[int, Tensor] = {}
    cuts = [cut.requires_grad_() for cut in random_features(program, packing, _PROBES)]
    with torch.enable_grad():
        logits = program.run(cuts, watch=watched)
        scores = [value for value in watched.values() if value.requires_grad]
        labels = {0, logits.shape[1] // 2, logits.shape[1] - 1}
        return all(_stands_alone(logits, scores, label) for label in labels)


def _stands_alone(logits: Tensor, scores: list[Tensor], label: int) -> bool:
    """Tell whether the score columns behind one logit are behind no other."""
    own = torch.zeros_like(logits)
    own[:, label] = 1.0
    mine = _score_gradients((logits * own).sum(), scores)
    theirs = _score_gradients((logits * (1 - own)).sum(), scores)
    for ours, others in zip(mine, theirs, strict=True):
        shared = [
            bool((_columns(ours, axis) & _columns(others, axis)).any())
            for axis in range(1, ours.dim())
        ]
        if all(shared) and ours.shape[1:].numel() > 1 and bool((ours != 0).any()):
            return False
    return True


def _score_gradients(total: Tensor, scores: list[Tensor]) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(score) for score in scores]
    grads = torch.autograd.grad(total, scores, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(score) if grad is None else grad
        for grad, score in zip(grads, scores, strict=True)
    ]


def _columns(grad: Tensor, axis: int) -> Tensor:
    return (grad != 0).movedim(axis, 0).flatten(1).any(1)
