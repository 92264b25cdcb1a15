"""Describing the final affine calls: weight, bias, class axis, parameters, ties."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from forgetkit.dryrun.atoms import is_overridden, is_quantised
from forgetkit.dryrun.graph import Graph, Node, Use, WeightUse
from forgetkit.dryrun.program import weights_of
from forgetkit.dryrun.slicing import Slice
from forgetkit.fingerprint import overlap
from forgetkit.substitution import parameter_places
from forgetkit.view import Affine

_FIRST_AXIS = frozenset({"linear", "conv1d", "conv2d", "conv3d", "bilinear"})
_SECOND_AXIS = frozenset({"matmul", "__matmul__", "mm", "addmm"})
_TURNS = frozenset({"t", "T", "mT", "transpose", "swapaxes", "permute"})


def affine_record(node: Node, found: Slice) -> Affine:
    """Describe one final affine call with its live tensors."""
    parameters = trainable(call_weights(node, found.graph))
    if node.module is not None:
        weight, axis = _module_weight(node.module)
        bias = getattr(node.module, "bias", None)
        plain = isinstance(bias, nn.Parameter) and weight is not None
        return Affine(node.name, weight, bias if plain else None, axis, parameters)
    weight, axis, path = _function_weight(node, found.graph)
    bias = _function_bias(node)
    return Affine(path or node.name, weight, bias, axis, parameters)


def call_weights(node: Node, graph: Graph) -> dict[str, Tensor]:
    """Return the parameters and buffers of a call, those its weight is derived from included."""
    nodes, pending, seen = [node], [node], {id(node)}
    while pending:
        for _, value in pending.pop().uses():
            maker = graph.makers(value)
            if maker is None or graph.values[value].data or id(maker) in seen:
                continue
            seen.add(id(maker))
            nodes.append(maker)
            pending.append(maker)
    return weights_of(nodes)


def trainable(weights: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    """Keep the floating-point parameters."""
    return {
        path: tensor
        for path, tensor in weights.items()
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
    }


def tied_names(found: Slice, model: nn.Module) -> list[str]:
    """Name the head's parameters that another part of the model reads or holds as well.

    So are tensors of other parts that lie in the same memory: an edit of the head moves them, too.
    Another name of the head's own module is no other part.
    """
    inside = set(found.nodes)
    weights = head_weights(found)
    head = {id(tensor): path for path, tensor in weights.items()}
    outside = [node for number, node in enumerate(found.graph.nodes) if number not in inside]
    names = {path for path, tensor in weights_of(outside).items() if id(tensor) in head}
    modules = {found.graph.nodes[number].name for number in inside}
    for path, parameter in parameter_places(model):
        elsewhere = path.rpartition(".")[0] not in modules and path != head.get(id(parameter))
        if id(parameter) in head and elsewhere and not _is_within(path, modules):
            names.add(path)
    edited = trainable(weights).values()
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) in head or path.rpartition(".")[0] in modules or _is_within(path, modules):
            continue
        if any(overlap(tensor, own) for own in edited):
            names.add(path)
    return sorted(names)


def head_weights(found: Slice) -> dict[str, Tensor]:
    """Return the tensors of the final affine calls and of those folded into the head."""
    weights: dict[str, Tensor] = {}
    for number in (*found.affines, *found.folded):
        weights.update(call_weights(found.graph.nodes[number], found.graph))
    return weights


def channel_axis(node: Node, shape: tuple[int, ...]) -> int:
    """Return the axis of one sample's features that a final affine call contracts."""
    conv = isinstance(node.module, _ConvNd) or "conv" in node.name.rpartition(".")[2].lower()
    if node.module is not None and is_quantised(node.module):
        conv = "Conv" in type(node.module).__name__
    return 0 if conv and len(shape) > 1 else len(shape) - 1


def _is_within(path: str, modules: set[str]) -> bool:
    return any(path.startswith(f"{name}.") for name in modules if name)


def _module_weight(module: nn.Module) -> tuple[Tensor | None, int]:
    weight = module._parameters.get("weight")  # noqa: SLF001 - a derived weight is an attribute
    if isinstance(module, _ConvTransposeNd) and not is_overridden(module):
        return weight, 1
    if isinstance(module, nn.Linear | _ConvNd | nn.Bilinear) and not is_overridden(module):
        return weight, 0
    if type(module).__name__ == "Conv1D" and weight is not None and weight.dim() == 2:
        return weight, 1  # GPT-2's transposed Linear
    return None, 0  # what another module does with its weight is not known


def _function_weight(node: Node, graph: Graph) -> tuple[Tensor | None, int, str | None]:
    """Follow a plain or transposed weight; a derived one (normalised, say) gives ``None``."""
    learned = [
        (path, leaf)
        for path, leaf in node.operands()
        if isinstance(leaf, WeightUse)
        or (isinstance(leaf, Use) and not graph.values[leaf.value].data)
    ]
    names = list(call_weights(node, graph))
    for path, leaf in learned:
        turned, place = _unturn(leaf, graph)
        if place is None or (path == (0, 2) and node.name != "addmm"):
            continue
        base = 0 if node.name in _FIRST_AXIS else 1 if node.name in _SECOND_AXIS else None
        weight = place.read()
        if base is None or weight.dim() < 2 or (turned and weight.dim() != 2):
            return None, 0, place.path
        return weight, 1 - base if turned else base, place.path
    return None, 0, names[0] if names else None


def _unturn(leaf: object, graph: Graph) -> tuple[bool, WeightUse | None]:
    turned = False
    while isinstance(leaf, Use):
        maker = graph.makers(leaf.value)
        if maker is None or maker.name not in _TURNS:
            return turned, None
        turned = not turned
        leaf = next(
            (item for _, item in maker.operands() if isinstance(item, Use | WeightUse)), None
        )
    return turned, leaf if isinstance(leaf, WeightUse) else None


def _function_bias(node: Node) -> Tensor | None:
    if node.name not in _FIRST_AXIS:
        return None
    position = 3 if node.name == "bilinear" else 2
    found = node.kwargs.get("bias", node.args[position] if len(node.args) > position else None)
    return found.read() if isinstance(found, WeightUse) else None
