"""Which modules are recorded as one call, and which calls multiply data with learned weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from forgetkit.dryrun.graph import Graph, Node

_CONTRACTIONS = frozenset(
    {
        "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "addmm", "bmm", "baddbmm",
        "einsum", "tensordot", "inner", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
        "conv_transpose2d", "conv_transpose3d", "bilinear", "cdist", "cosine_similarity",
        "multi_head_attention_forward", "chain_matmul", "embedding",
    }
)  # fmt: skip
_NORM_NAME = re.compile(r"norm([123]d)?(act([123]d)?)?$", re.IGNORECASE)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
# timm's Linear (MobileNetV3, GhostNet) differs from torch's in TorchScript only.
_AS_IN_TORCH = ("torch.nn.modules", "timm.layers.linear")


def is_quantised(module: nn.Module) -> bool:
    """Tell whether ``module`` is a torch integer module that keeps its weights packed."""
    return ".quantized" in type(module).__module__ or hasattr(module, "_packed_params")


def is_overridden(module: nn.Module) -> bool:
    """Tell whether a class derived from a torch layer computes something else than that layer."""
    for kind in type(module).__mro__:
        if "forward" in vars(kind) or "_conv_forward" in vars(kind):
            return not kind.__module__.startswith(_AS_IN_TORCH)
    return True


def is_atom(module: nn.Module) -> bool:
    """Tell whether a call of ``module`` is recorded as one step: a leaf, scripted or packed."""
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_packed_params"):
        return True
    return all(name == "parametrizations" for name, _ in module.named_children())


def atoms(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (dotted path, module) of the outermost atoms below ``root``, each module once."""
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", root)]
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if module is not root and is_atom(module):
            yield path, module
            continue
        children = [(name, child) for name, child in module.named_children()]
        stack += [(f"{path}.{name}" if path else name, child) for name, child in reversed(children)]


def is_norm(module: nn.Module) -> bool:
    """Tell whether ``module`` normalises: its weights scale, they do not mix."""
    return isinstance(module, _NORMS) or bool(_NORM_NAME.search(type(module).__name__))


def is_affine(node: Node, graph: Graph) -> bool:
    """Tell whether ``node`` multiplies data with the model's own weights and mixes its axes."""
    if not any(graph.values[value].data for _, value in node.uses()):
        return False
    if node.module is not None:
        return _is_affine_module(node.module)
    if node.name not in _CONTRACTIONS:
        return False
    return any(_is_learned(leaf, graph) for _, leaf in node.operands())


def is_batch_norm(node: Node) -> bool:
    """Tell whether ``node`` is a batch normalisation."""
    return isinstance(node.module, _BatchNorm) or node.name == "batch_norm"


def _is_affine_module(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear | _ConvNd | nn.Bilinear):
        return True
    if is_quantised(module):
        return any(word in type(module).__name__ for word in ("Linear", "Conv"))
    if is_norm(module) or isinstance(module, nn.PReLU):
        return False
    return any(is_matrix(tensor) for tensor in (*module.parameters(), *module.buffers()))


def is_matrix(tensor: Tensor) -> bool:
    """Tell whether a weight can mix axes: two of them are longer than 1."""
    return sum(size > 1 for size in tensor.shape) >= 2


def _is_learned(leaf: object, graph: Graph) -> bool:
    from forgetkit.dryrun.graph import Use, WeightUse

    if isinstance(leaf, WeightUse):
        return leaf.read().dim() >= 1
    if not isinstance(leaf, Use) or graph.values[leaf.value].data:
        return False
    maker = graph.makers(leaf.value)
    return maker is not None and (
        maker.module is not None or any(_is_learned(item, graph) for _, item in maker.operands())
    )
