"""Finding the logits in what a model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from forgetkit.dryrun.nesting import follow, paths
from forgetkit.dryrun.refusals import refusal

OutputChoice: TypeAlias = "str | int | Callable[[object], Tensor] | None"
"""Where the logits are in the output: a key, an index, or a function of the output."""

Path: TypeAlias = tuple[str | int, ...]


def are_probabilities(logits: Tensor) -> bool:
    """Return whether no entry is negative and every row of several sums to 1, as after softmax."""
    rows = logits.detach().float()
    if rows.ndim != 2 or rows.shape[1] < 2 or len(rows) == 0 or bool((rows < 0).any()):
        return False
    return bool(((rows.sum(dim=1) - 1.0).abs() < 1e-2).all())


@dataclass(frozen=True)
class Pick:
    """One way to take the logits out of an output.

    Args:
        path: keys and indices to follow.
        function: applied to the output instead, when given.
    """

    path: Path = ()
    function: Callable[[object], Tensor] | None = None

    def __call__(self, output: object) -> Tensor:
        """Return the logits, (batch, classes); raises CannotSplitModel when they are not there."""
        try:
            found = follow(output, self.path) if self.function is None else self.function(output)
        except (LookupError, AttributeError, TypeError) as error:
            raise refusal(
                "not-logits",
                f"output={self.path[0] if self.path else self.function!r} does not fit: it should "
                f"lead to the logits, but the model returned {describe(output)}. Pass the key, the "
                "index or a function that returns the tensor of shape (batch, classes).",
            ) from error
        if isinstance(found, Tensor):
            return found
        raise refusal(
            "not-logits",
            f"output= should lead to a tensor of logits, but it leads to {type(found).__name__}; "
            "pass the key, the index or a function that returns the tensor.",
        )


def choices(output: object, output_choice: OutputChoice, num_classes: int | None) -> list[Pick]:
    """Return the ways in which ``output`` may hold logits, the likeliest first.

    Args:
        output: what the model returned.
        output_choice: the caller's word, which leaves one choice.
        num_classes: expected width, if known; tensors of that width come first.

    Raises:
        CannotSplitModel: when no tensor of the output is a matrix (``not-logits``).
    """
    if output_choice is not None:
        if isinstance(output_choice, str | int):
            return [Pick((output_choice,))]
        return [Pick(function=output_choice)]
    if isinstance(output, Tensor):
        return [Pick()]
    named = _named_logits(output)
    if named is not None:
        return [named]
    found = list(paths(output))
    if len(found) == 1:
        return [Pick(found[0][0])]
    flat = [(path, tensor) for path, tensor in found if tensor.dim() == 2]
    fitting = [path for path, tensor in flat if tensor.shape[1] == num_classes]
    others = [path for path, _ in flat if path not in fitting]
    if not flat:
        raise refusal(
            "not-logits",
            f"the model should return logits of shape (batch, classes); it returned "
            f"{describe(output)}. Pass output= (a key, an index or a function) if the logits are "
            "in there.",
        )
    return [Pick(path) for path in fitting + others]


def logits_of(
    output: object, output_choice: OutputChoice = None, *, num_classes: int | None = None
) -> Tensor:
    """Pick the logits out of a model's output without looking at the model.

    Args:
        output: a tensor; an object or mapping with ``logits``; a tuple, list or mapping that
            holds one matrix, or one of the expected width.
        output_choice: key, index or function that overrides the search.
        num_classes: expected width, if known.

    Returns:
        (batch, classes) logits, as they are in the output.

    Raises:
        CannotSplitModel: when the output holds no logits (``not-logits``) or several tensors
            that could be (``ambiguous-output``).
    """
    found = choices(output, output_choice, num_classes)
    logits = [pick(output) for pick in found]
    if num_classes is not None and len(logits) > 1:
        logits = [tensor for tensor in logits if tensor.shape[1] == num_classes] or logits
    if len(logits) > 1:
        raise ambiguous(found)
    if logits[0].dim() != 2:
        raise not_logits(tuple(logits[0].shape))
    return logits[0]


def ambiguous(found: list[Pick]) -> Exception:
    """Build the error for several tensors that could be the logits."""
    places = ", ".join(".".join(str(step) for step in pick.path) for pick in found)
    return refusal(
        "ambiguous-output",
        f"the model should return one tensor of logits; it returned several that could be: "
        f"{places}. Pass output= with the right key or index; a request takes it in "
        ".head(name, output=...).",
    )


def not_logits(shape: tuple[int, ...]) -> Exception:
    """Build the error for an output of another shape than (batch, classes)."""
    way_out = (
        "pass output=lambda y: y[:, None] for a single score a sample"
        if len(shape) == 1
        else "dense prediction and detection are not classification; if class scores can be had, "
        "pass output= with a function that returns them"
    )
    return refusal(
        "not-logits",
        f"the model's output should have shape (batch, classes), but it has {shape}; {way_out}.",
    )


def describe(output: object) -> str:
    """Say in a few words what a model returned."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    held = [
        f"{'.'.join(str(step) for step in path)}: {tuple(t.shape)}" for path, t in paths(output)
    ]
    return f"{type(output).__name__} with {', '.join(held[:8]) if held else 'no tensor'}"


def _named_logits(output: object) -> Pick | None:
    held = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return Pick(("logits",)) if isinstance(held, Tensor) else None
