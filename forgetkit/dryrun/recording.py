"""Recording one forward pass: leaf modules by hooks, functions by a torch-function mode."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from forgetkit.dryrun.atoms import atoms
from forgetkit.dryrun.graph import Autocast, Graph, Node, Use, Value
from forgetkit.dryrun.nesting import map_leaves, paths
from forgetkit.dryrun.weight_calls import WeightCalls, weight_places

_SMALL = 1 << 16  # elements; larger unknown tensors are taken for activations, not constants


@dataclass
class _Frame:
    """What was seen when a call began."""

    args: tuple[object, ...]
    kwargs: dict[str, object]
    operands: list[Tensor]
    values: list[int]
    versions: list[int]


@dataclass
class Watched:
    """The inputs of one call of a module that the caller asked about."""

    module: nn.Module
    name: str
    ordinal: int
    uses: list[tuple[tuple[str | int, ...], int]] = field(default_factory=list)


class Recorder(TorchFunctionMode):
    """Record the calls made while active into ``graph``.

    Args:
        model: the unwrapped model.
        inputs: the tensors it is called with.
        watch: modules whose inputs are noted, leaf or not, by dotted path.
    """

    def __init__(
        self, model: nn.Module, inputs: Iterable[Tensor], watch: dict[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.graph = Graph()
        self.watched: list[Watched] = []
        self._model = model
        self._watch = watch or {}
        self._inside = 0
        self._busy = False  # our own hooks look at tensors too
        self._frames: list[_Frame | None] = []
        self._counts: Counter[object] = Counter()
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._weights = weight_places(model)
        self._calls = WeightCalls(self._weights)
        self._hooks = ExitStack()
        listed = list(inputs)
        self._batch = len(listed[0]) if listed and listed[0].dim() else 1
        self._devices = {tensor.device.type for tensor in listed} | {"cpu"}
        self._outer = self._autocast()
        for tensor in listed:
            self._know(tensor, Value("input", tuple(tensor.shape), tensor.dtype, data=True))

    def __enter__(self) -> Self:
        try:
            for name, module in self._watch.items():
                self._add(module, self._watch_hook(name))
            for path, module in atoms(self._model):
                self._add(module, self._before)
                handle = nn.Module.register_forward_hook(
                    module, self._after(path), with_kwargs=True, always_call=True
                )
                self._hooks.callback(handle.remove)
            super().__enter__()  # type: ignore[no-untyped-call]
        except BaseException:
            self._hooks.close()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        try:
            super().__exit__(*reason)  # type: ignore[no-untyped-call]
        finally:
            self._hooks.close()

    def value_of(self, tensor: Tensor) -> int | None:
        """Return the recorded value that ``tensor`` is, or ``None`` when it was not seen."""
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call ``func`` and note what it read and made."""
        del types
        kwargs = kwargs or {}
        if self._busy:
            return func(*args, **kwargs)
        # calls inside of leaf modules count too: whoever listens for one later hears them all
        call = self._calls.begin(func, args, kwargs)
        frame = None if self._inside else self._begin(args, kwargs)
        result = func(*args, **kwargs)
        self._calls.end(call, result)
        if frame is None:
            return result
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        node = Node(None, name, func, call.ordinal, frame.args, frame.kwargs, call.weights)
        self._end(frame, node, result)
        return result

    def _add(self, module: nn.Module, hook: Callable[..., None]) -> None:
        # a scripted part calls such hooks, but refuses them by a method of its own
        handle = nn.Module.register_forward_pre_hook(module, hook, prepend=True, with_kwargs=True)
        self._hooks.callback(handle.remove)

    def _before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        del module
        self._busy = True
        self._frames.append(None if self._inside else self._begin(args, kwargs))
        self._inside += 1
        self._busy = False

    def _after(self, path: str) -> Callable[..., None]:
        def hook(
            module: nn.Module,
            args: tuple[object, ...],
            kwargs: dict[str, object],
            output: object,
        ) -> None:
            del args, kwargs  # as they are after the call; the frame holds them as before it
            ordinal = self._counts[module]
            self._counts[module] += 1
            frame = self._frames.pop()
            self._inside -= 1
            self._busy = True
            if frame is not None:
                node = Node(module, path, None, ordinal, frame.args, frame.kwargs)
                self._end(frame, node, output)
            self._busy = False

        return hook

    def _watch_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self._busy = True
            frame = self._begin(args, kwargs)
            self._busy = False
            seen = sum(item.module is module for item in self.watched)
            node = Node(module, name, None, seen, frame.args, frame.kwargs)
            self.watched.append(Watched(module, name, seen, node.uses()))

        return hook

    def _begin(self, args: tuple[object, ...], kwargs: dict[str, object]) -> _Frame:
        operands: list[Tensor] = []
        values: list[int] = []

        def encode(leaf: object) -> object:
            if not isinstance(leaf, Tensor):
                return leaf
            tensor: Tensor = leaf
            place = self._weights.get(id(leaf))
            if place is not None and getattr(place.owner, place.attribute, None) is leaf:
                operands.append(tensor)
                values.append(-1)
                return place
            value = self._look_up(leaf)
            operands.append(leaf)
            values.append(value)
            return Use(value)

        coded_args = map_leaves(tuple(args), encode)
        coded_kwargs = map_leaves(dict(kwargs), encode)
        if not isinstance(coded_args, tuple) or not isinstance(coded_kwargs, dict):
            raise TypeError("containers keep their kind")
        versions = [_version(tensor) for tensor in operands]
        return _Frame(coded_args, coded_kwargs, operands, values, versions)

    def _end(self, frame: _Frame, node: Node, result: object) -> None:
        before = {
            id(item): version for item, version in zip(frame.operands, frame.versions, strict=True)
        }
        changed = {
            id(item): (item, value)
            for item, value in zip(frame.operands, frame.values, strict=True)
            if value >= 0 and _version(item) != before[id(item)]
        }
        made = [
            (path, tensor)
            for path, tensor in paths(result)
            if id(tensor) in changed or id(tensor) not in before
        ]
        if not made and not changed:
            return
        data = any(self.graph.values[value].data for value in frame.values if value >= 0)
        number = len(self.graph.nodes)
        state = self._autocast()
        node.autocast = () if state == self._outer else state
        self.graph.nodes.append(node)
        fresh: dict[int, int] = {}
        for item, value in changed.values():
            new = Value("call", tuple(item.shape), item.dtype, data, number)
            fresh[id(item)] = self._know(item, new)
            node.mutated.append((value, fresh[id(item)]))
        for path, tensor in made:
            if id(tensor) not in fresh:
                new = Value("call", tuple(tensor.shape), tensor.dtype, data, number)
                fresh[id(tensor)] = self._know(tensor, new)
            node.outputs.append((path, fresh[id(tensor)]))

    def _know(self, tensor: Tensor, value: Value) -> int:
        self.graph.values.append(value)
        number = len(self.graph.values) - 1
        self._known[id(tensor)] = (weakref.ref(tensor), number, _version(tensor))
        return number

    def _look_up(self, tensor: Tensor) -> int:
        entry = self._known.get(id(tensor))
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if entry is None or entry[0]() is not tensor:
            kept = tensor.detach() if self._is_constant(tensor) else None
            return self._know(tensor, Value("unknown", shape, dtype, data=True, constant=kept))
        if entry[2] != _version(tensor):
            data = self.graph.values[entry[1]].data
            return self._know(tensor, Value("stale", shape, dtype, data))
        return entry[1]

    def _is_constant(self, tensor: Tensor) -> bool:
        # One row a sample is rather something computed out of sight than a constant.
        rows = self._batch > 1 and tensor.dim() > 0 and len(tensor) == self._batch
        return tensor.numel() <= _SMALL and not tensor.is_meta and not rows

    def _autocast(self) -> tuple[Autocast, ...]:
        return tuple(
            Autocast(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in sorted(self._devices)
            if device != "meta"
        )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001 - no public counter
