"""Taking the inputs of the final affine calls out of a forward pass of the user's model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from forgetkit.dryrun.graph import Graph
from forgetkit.dryrun.nesting import follow
from forgetkit.dryrun.recording import Watched
from forgetkit.dryrun.refusals import refusal
from forgetkit.dryrun.slicing import Slice
from forgetkit.dryrun.weight_calls import WeightCalls, weight_places

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """Where one cut can be caught.

    Args:
        name: of the module or function, for messages.
        module: the module that reads it, or ``None``.
        function: the function that reads it, or ``None``.
        ordinal: which call of that module, or of that function with these weights.
        path: where among its arguments: 0 (positional) or 1 (keyword), then keys.
        weights: of a function, paths of the weights behind its operands. Train mode may make
            other calls of it before.
    """

    name: str
    module: nn.Module | None
    function: Callable[..., object] | None
    ordinal: int
    path: Path
    weights: frozenset[str] = frozenset()


def sources(found: Slice, watched: list[Watched]) -> list[Source]:
    """Choose for every cut the call where it is caught; modules before functions.

    Raises:
        CannotSplitModel: ``not-reached`` when nothing reads a cut.
    """
    return [_source(found.graph, found, cut, watched) for cut in found.cuts]


def _source(graph: Graph, found: Slice, cut: int, watched: list[Watched]) -> Source:
    for item in watched:
        for path, value in item.uses:
            if value == cut:
                return Source(item.name, item.module, None, item.ordinal, path)
    readers: list[Source] = []
    for number in found.nodes:
        node = graph.nodes[number]
        readers += [
            Source(node.label(), node.module, node.function, node.ordinal, path, node.weights)
            for path, value in node.uses()
            if value == cut
        ]
    if not readers:
        raise refusal("not-reached", "the head reads no features; pass head= with its name.")
    return min(readers, key=lambda source: (source.module is None, not source.weights))


class Catcher:
    """Catch the tensors at ``sources`` during the forward passes run in its ``with`` block.

    Each is cloned: a later in-place step may change it, and a view would keep its base alive.

    Args:
        wanted: where to catch.
        model: what is run; its weights tell the calls of functions apart.
    """

    def __init__(self, wanted: list[Source], model: nn.Module) -> None:
        self._wanted = wanted
        self._model = model
        self._caught: dict[int, Tensor] = {}
        self._calls: Counter[nn.Module] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        modules = {source.module for source in self._wanted if source.module is not None}
        try:
            for module in modules:
                handle = module.register_forward_pre_hook(
                    self._hook, prepend=True, with_kwargs=True
                )
                self._stack.callback(handle.remove)
            if any(source.module is None for source in self._wanted):
                calls = WeightCalls(weight_places(self._model))
                self._stack.enter_context(_FunctionCatcher(self._wanted, self._caught, calls))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def caught(self) -> list[Tensor]:
        """Return one tensor a source, in order.

        Raises:
            CannotSplitModel: ``not-reached`` when a source was not called.
        """
        for position, source in enumerate(self._wanted):
            if position not in self._caught:
                raise refusal(
                    "not-reached",
                    f"the head {source.name} should be called in every forward pass, but it was "
                    "not: it was replaced, or this input took another branch. Adapt again.",
                )
        return [self._caught[position] for position in range(len(self._wanted))]

    def _hook(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        ordinal = self._calls[module]
        self._calls[module] += 1
        for position, source in enumerate(self._wanted):
            if source.module is module and source.ordinal == ordinal:
                _keep(self._caught, position, source, (args, kwargs))


class _FunctionCatcher(TorchFunctionMode):
    """Catch arguments of functions that are called outside of any module of their own."""

    def __init__(self, wanted: list[Source], caught: dict[int, Tensor], calls: WeightCalls) -> None:
        super().__init__()
        self._wanted = [(n, source) for n, source in enumerate(wanted) if source.module is None]
        self._caught = caught
        self._calls = calls

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        del types
        kwargs = kwargs or {}
        call = self._calls.begin(func, args, kwargs)
        for position, source in self._wanted:
            if source.function == func and (source.weights, source.ordinal) == (
                call.weights,
                call.ordinal,
            ):
                _keep(self._caught, position, source, (args, kwargs))
        result = func(*args, **kwargs)
        self._calls.end(call, result)
        return result


def _keep(caught: dict[int, Tensor], position: int, source: Source, arguments: object) -> None:
    try:
        tensor = follow(arguments, source.path)
    except (LookupError, AttributeError, TypeError):
        return
    if isinstance(tensor, Tensor):
        caught[position] = tensor.clone()
