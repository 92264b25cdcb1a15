"""The layers of a model in the order of its forward pass, and the tensors of the last k of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from forgetkit.errors import BadHyperparameter, ModelError
from forgetkit.types import Batch, SampleSet

Unit: TypeAlias = Literal["layer", "block"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # noqa: SLF001
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)  # noqa: SLF001
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """One layer with weights, or one block of them.

    Args:
        name: dotted path of the module that is counted.
        parameters: dotted paths of the parameters that belong to it, normalisation included.
        buffers: dotted paths of its buffers (running statistics).
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


def layers(model: nn.Module, forward: Callable[[], object], unit: str = "layer") -> list[Layer]:
    """Return the layers with weights in the order in which a forward pass first calls them.

    What is called behind the last layer of the logits does not count: a projection or an auxiliary
    classifier for a second output. Convolutions and linear maps count one each;
    ``nn.MultiheadAttention``, which holds two linear maps, counts two. Every parameter and buffer
    of the model belongs to exactly one layer:

    * what lies inside a counted module, to that module;
    * a module without weights of its own (normalisation, layer scale) to the layer before it;
    * a tensor beside submodules (class token, positions) to the first layer inside its module;
    * what no forward pass in eval mode calls for the logits, to the first layer;
    * a tensor that two modules share, to the earlier of their layers.

    With ``unit="block"`` the layers are grouped by the elements of the model's stacks: a residual
    block, an attention block. A plain sequence of single layers is one block.

    Args:
        model: left as it is; hooks are removed again.
        forward: runs one forward pass of the model, in eval mode, and returns the logits.
        unit: ``"layer"`` or ``"block"``.

    Raises:
        ModelError: the forward pass calls no layer with weights.
    """
    called = _called(model, forward)
    counted = _counted(model, called)
    if not counted:
        raise ModelError(
            f"layers({type(model).__name__}): expected a convolution or a linear layer among the "
            "modules that a forward pass calls, found none; choose a method that does not count "
            "layers"
        )
    place = _places(model, called, counted)
    names, group = counted, list(range(len(counted)))
    if unit == "block":
        names, group = _grouped(counted, _blocks(model, counted))
        number = {name: index for index, name in enumerate(names)}
        place = {
            owner: next((number[p] for p in _paths(owner) if p in number), group[layer])
            for owner, layer in place.items()
        }
    return _with_tensors(model, names, place)


def last(found: Sequence[Layer], k: int, unit: str = "layer") -> list[Layer]:
    """Return the last k layers or blocks; the head, number 1 from the end, is always one of them.

    Raises:
        BadHyperparameter: the model has fewer than k.
    """
    if k > len(found):
        raise BadHyperparameter(
            f"k: expected at most {len(found)}, the number of {unit}s with weights in this model, "
            f"found {k}; choose k between 1 and {len(found)}, or use retrain or finetune for the "
            "whole network"
        )
    return list(found[len(found) - k :])


def suffix(
    model: nn.Module,
    samples: SampleSet,
    logits: Callable[[Batch], Tensor],
    *,
    k: int,
    unit: str = "layer",
) -> list[Layer]:
    """Return the last k layers or blocks, found by a forward pass over two samples.

    Args:
        model: left as it is; in eval mode.
        samples: the first two of them are read.
        logits: calls the model on a batch.
        k: how many.
        unit: ``"layer"`` or ``"block"``.

    Raises:
        BadHyperparameter: the model has fewer than k.
        ModelError: the model calls no layer with weights.
    """
    few = next(iter(samples.take(torch.arange(min(2, len(samples)))).batches()))
    return last(layers(model, lambda: logits(few), unit), k, unit)


def reaching(model: nn.Module, forward: Callable[[], object]) -> set[str]:
    """Return the names of the floating-point parameters that the logits depend on.

    Where autograd cannot tell, as with a forward pass without gradients, it is all of them.

    Args:
        model: left as it is.
        forward: runs one forward pass of the model and returns the logits.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    flags = [parameter.requires_grad for parameter in parameters.values()]
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            logits = forward()
            if not isinstance(logits, Tensor) or not logits.requires_grad:
                return set(parameters)
            found = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    except RuntimeError:
        return set(parameters)
    finally:
        for parameter, flag in zip(parameters.values(), flags, strict=True):
            parameter.requires_grad_(flag)
    return {name for name, own in zip(parameters, found, strict=True) if own is not None}


def _call_order(model: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Return the position of each module's first call."""
    order: dict[str, int] = {}
    handles = []
    try:
        for name, module in model.named_modules():
            # The hook is called with the module and its arguments and must return None.
            def note(*_: object, name: str = name) -> None:
                order.setdefault(name, len(order))

            handles.append(module.register_forward_pre_hook(note))
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return order


def _is_weighted(module: nn.Module) -> bool:
    if isinstance(module, _WEIGHTED):
        return True
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return (
        weight is not None and weight.ndim >= 2 and not isinstance(module, (*_NORMS, nn.Embedding))
    )


def _called(model: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Return the position of each module's first call, without those that the logits ignore.

    Only behind the last layer that a gradient reaches is its absence a sign of that: layers in
    front may run without gradients, as a frozen backbone under ``torch.no_grad`` does.
    """
    used, modules = reaching(model, forward), dict(model.named_modules())
    known = {id(p) for name, p in model.named_parameters() if name in used}
    order = _call_order(model, forward)

    def parameters(name: str, *, recurse: bool = True) -> list[int]:
        own = modules[name].parameters(recurse=recurse)
        return [id(p) for p in own if p.is_floating_point()]

    reached = [
        at for name, at in order.items() if not known.isdisjoint(parameters(name, recurse=False))
    ]
    end = max(reached, default=len(order))

    def ignored(name: str) -> bool:
        own = parameters(name)
        return bool(own) and known.isdisjoint(own) and order[name] > end

    return {name: at for name, at in order.items() if not ignored(name)}


def _counted(model: nn.Module, called: dict[str, int]) -> list[str]:
    """Return the layers that a forward pass calls, in order."""
    modules = dict(model.named_modules())
    found: list[str] = []
    for name in called:
        if not _is_weighted(modules[name]):
            continue
        found.append(name)
        if isinstance(modules[name], nn.MultiheadAttention):
            # Attention applies its output map without calling the module.
            found.append(f"{name}.out_proj" if name else "out_proj")
    return found


def _paths(name: str) -> Iterator[str]:
    """Yield a module's path and those of all modules around it, the nearest first."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _places(model: nn.Module, called: dict[str, int], counted: list[str]) -> dict[str, int]:
    """Return the index of the layer that each module's own tensors belong to."""
    number = {name: index for index, name in enumerate(counted)}
    first_inside: dict[str, int] = {}
    for index, name in enumerate(counted):
        for path in _paths(name):
            first_inside.setdefault(path, index)
    # An attention's output map is never called: it stands where the attention does.
    position: list[int] = []
    for name in counted:
        position.append(called[name] if name in called else position[-1])
    places: dict[str, int] = {}
    for owner, _ in model.named_modules():
        around = next((number[path] for path in _paths(owner) if path in number), None)
        if around is not None:
            places[owner] = around
        elif owner in first_inside:
            places[owner] = first_inside[owner]
        elif owner in called:
            places[owner] = max(bisect_left(position, called[owner]) - 1, 0)
        else:
            places[owner] = 0
    return places


def _blocks(model: nn.Module, counted: list[str]) -> list[str]:
    """Return the paths of the blocks: elements of stacks, and what lies beside the stacks."""
    size = Counter(path for name in counted for path in _paths(name))
    around_stacks: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, _CONTAINERS):
            sizes = [size[f"{path}.{name}".lstrip(".")] for name, _ in module.named_children()]
            several = [count > 1 for count in sizes if count > 0]
            if several and (all(several) or sum(several) > 1):
                around_stacks |= set(_paths(path))

    def split(path: str, module: nn.Module) -> list[str]:
        if size[path] == 0:
            return []
        if path and path not in around_stacks:
            return [path]
        inner = [
            split(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()
        ]
        return [block for some in inner for block in some]

    return split("", model)


def _grouped(counted: list[str], blocks: list[str]) -> tuple[list[str], list[int]]:
    """Return the names of the blocks in forward order, and the block of each layer."""
    known = set(blocks)
    block_of = [next((p for p in _paths(name) if p in known), name) for name in counted]
    number = {name: index for index, name in enumerate(dict.fromkeys(block_of))}
    return list(number), [number[block] for block in block_of]


def _with_tensors(model: nn.Module, names: list[str], place: dict[str, int]) -> list[Layer]:
    """Return the layers with the names of their tensors, as the model lists them."""
    earliest: dict[int, int] = {}
    for owner, module in model.named_modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            index = place[owner]
            earliest[id(tensor)] = min(earliest.get(id(tensor), index), index)
    parameters: list[list[str]] = [[] for _ in names]
    buffers: list[list[str]] = [[] for _ in names]
    for path, parameter in model.named_parameters():
        parameters[earliest[id(parameter)]].append(path)
    for path, buffer in model.named_buffers():
        buffers[earliest[id(buffer)]].append(path)
    return [
        Layer(name, tuple(own), tuple(statistics))
        for name, own, statistics in zip(names, parameters, buffers, strict=True)
    ]


def described(layers: Sequence[Layer], movable: Collection[str]) -> str:
    """Name layers, and which of their tensors are frozen.

    Args:
        layers: what is named.
        movable: names of the parameters and buffers that are not frozen.
    """
    names = ", ".join(layer.name for layer in layers)
    own = [name for layer in layers for name in (*layer.parameters, *layer.buffers)]
    frozen = [name for name in own if name not in movable]
    if not frozen:
        return names
    return (
        f"{names}; {len(frozen)} frozen tensors stay as they are, with what they know of the "
        f"forget set: {', '.join(frozen[:4])}"
    )
