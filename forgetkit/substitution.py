"""Calling a model with other tensors in the place of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.func import functional_call

from forgetkit.types import Inputs


def parameter_places(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (dotted path, parameter) of every place that holds a parameter, each once.

    A module that is registered under several names is one place, under the first of them; a
    parameter that two modules hold has two.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{path}.{name}" if path else name, parameter


def output_with(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Inputs) -> object:
    """Return the model's output with other tensors in the place of the parameters that they name.

    ``functional_call`` ties names by itself, and then leaves its tensors behind in a module that
    is registered twice: it takes them for the module's own when it comes to the second name.

    Args:
        model: left as it was.
        parameters: by the names of ``model.named_parameters()``.
        inputs: a tensor, or tensors by keyword.
    """
    given = {id(p): parameters[n] for n, p in model.named_parameters() if n in parameters}
    places = {path: given[id(p)] for path, p in parameter_places(model) if id(p) in given}
    args, named = ((inputs,), {}) if isinstance(inputs, Tensor) else ((), dict(inputs))
    return functional_call(model, places, args, named, tie_weights=False)
